//! Integration tests of the workspace, one binary: every extra one would link libtorch again.

// The architecture's invariants that can be read off the tree: dependency directions, lints, unsafe code, recipes, golden files.
mod repo;
// The two programs together: a cache gives the losses that its teachers would give inside the loop, and damage is refused.
mod cached_equals_online;
// A cache of the format's first version.
mod compat;
// The cache read by other tools, as docs/reading-a-cache.md says.
mod interop;
// What a run shows of itself: TensorBoard's events and the report in a browser.
mod seeing;
