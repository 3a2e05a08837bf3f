//! Integration tests of the workspace, one binary: every extra one would link libtorch again.

// The architecture's invariants that can be read off the tree: dependency directions, lints, unsafe code, recipes, golden files.
mod repo;
