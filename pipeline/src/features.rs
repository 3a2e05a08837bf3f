//! A row's stored bytes as numbers, for everything that looks at features.

use schemas::{Codec, Result, TeacherIdentity, TeacherRow};

/// Replaces `values` by the row's tokens, `[L, D]`.
pub(crate) fn tokens(
    teacher: &TeacherIdentity,
    row: &TeacherRow,
    values: &mut Vec<f32>,
) -> Result<()> {
    teacher.codec.decode(&row.tokens, values)
}

/// The row's CLS token, `[D]`.
pub(crate) fn cls(teacher: &TeacherIdentity, row: &TeacherRow) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    teacher.codec.decode(&row.cls, &mut values)?;
    Ok(values)
}

/// Replaces `values` by the attention of CLS to each patch, `[L]`.
pub(crate) fn cls_attn(row: &TeacherRow, values: &mut Vec<f32>) -> Result<()> {
    Codec::F16.decode(&row.cls_attn, values)
}
