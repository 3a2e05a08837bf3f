//! torch-ext
