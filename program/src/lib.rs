//! What the programs of this workspace have in common apart from their work. No tensors and no images.
//!
//! | module | content |
//! |---|---|
//! | [`cli`] | reading a command line, completions, `--log-format` |
//! | [`recipe`] | settings: a TOML file, `--set section.key=value`, and errors that name the setting |
//! | [`fetch`] | a path or a hub id as files, with the download shown |
//! | [`terminal`] | messages and progress bars on stderr |
//! | [`signals`] | Ctrl-C and SIGTERM |
//! | [`exit`] | the exit status |
//! | [`stores`] | object stores, as the environment says |
//! | [`table`](mod@table) | tables of results |
//! | [`words`] | counts in sentences and tables |

pub mod cli;
pub mod exit;
pub mod fetch;
pub mod range;
pub mod recipe;
pub mod signals;
pub mod stores;
pub mod table;
pub mod terminal;
pub mod words;

pub use cli::LogFormat;
pub use exit::ExitStatus;
