//! A row's stored bytes as numbers, for everything that looks at features.

use schemas::{Result, TeacherIdentity, TeacherRow};

/// Replaces `values` by the row's tokens, `[L, D]`.
pub(crate) fn tokens(teacher: &TeacherIdentity, row: &TeacherRow, values: &mut Vec<f32>) -> Result<()> {
    teacher.decode_tokens(&row.tokens, values)
}

/// Replaces `values` by the row's CLS token, `[D]`.
pub(crate) fn cls(teacher: &TeacherIdentity, row: &TeacherRow, values: &mut Vec<f32>) -> Result<()> {
    teacher.decode_cls(&row.cls, values)
}

/// Replaces `values` by the attention of CLS to each patch, `[L]`.
pub(crate) fn cls_attn(teacher: &TeacherIdentity, row: &TeacherRow, values: &mut Vec<f32>) -> Result<()> {
    teacher.decode_cls_attn(&row.cls_attn, values)
}
