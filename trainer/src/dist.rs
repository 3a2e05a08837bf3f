//! Training in many processes: data parallel, one process for each GPU, as torchrun and Slurm start them.
//!
//! The recipe's batch is that of all processes: each takes its [`Share`] of every step, and the sum of their gradients is the step's. So order,
//! masks, learning rate and the identity of a run do not know how many they are.
//!
//! | file | content |
//! |---|---|
//! | `place.rs` | which process this is, as its launcher says, and its GPU |
//! | `share.rs` | which images of a step a process takes |
//! | `store.rs` | the store by which they meet, with a limit to its patience |
//! | `lost.rs` | the error when one is gone |
//! | `meeting.rs` | how they find each other |
//! | `world.rs` | what is done in common, and who is missing when something fails |
//! | `reducer.rs` | the sum of gradients and losses at the end of a step |

mod lost;
mod meeting;
mod place;
mod reducer;
mod share;
mod store;
mod world;

pub(crate) use lost::LostRank;
pub use place::Place;
pub(crate) use place::resolve_device;
pub(crate) use reducer::{RankFacts, Reducer};
pub(crate) use share::{Cut, Share};
#[cfg(test)]
pub(crate) use world::tests;
pub(crate) use world::{World, in_world};
