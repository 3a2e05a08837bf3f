//! Integration tests of the workspace, one binary: every extra one would link libtorch again. Those that touch what belongs to the whole
//! process are the exception, in `tests/alone`.

// The architecture's invariants that can be read off the tree: dependency directions, lints, unsafe code, recipes, golden files.
mod repo;
// No modules import each other.
mod circles;
// Plain English: forms of sentences and British spelling that must not come back.
mod english;
// The two programs together: what one calls damaged, the other refuses.
mod damaged_row;
// The libtorch that a checkout is linked with.
mod setup;
// A cache of the format's first version.
mod compat;
// The cache read by other tools, as docs/reading-a-cache.md says.
mod interop;
// What a run shows of itself: TensorBoard's events and the report in a browser.
mod seeing;
// The check of a GPU, run without one.
mod gpu_check;
