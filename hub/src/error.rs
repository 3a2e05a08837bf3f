//! What can go wrong on the way from an id to a folder, each with the next step. No message holds a token or a signed URL.

use std::io;
use std::path::PathBuf;

/// One variant for each thing a caller would do differently about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no path that exists, and no id either.
    #[error("{text}: no such file or folder, and not the id of a model on a hub (org/name or org/name@revision)")]
    NoSuchPath {
        /// What was asked for.
        text: String,
    },

    /// A path into a folder that exists, which is then not asked of a hub.
    #[error(
        "{text} does not exist here; {parent} does, so no model hub was asked. For the model of that id on a hub write {text}@main"
    )]
    NotInFolder {
        /// What was asked for.
        text: String,
        /// The folder.
        parent: String,
    },

    /// What names a file or a folder of ours rather than a model, and is then not asked of a hub.
    #[error(
        "{text} does not exist, and a name like that is taken for a path, so no model hub was asked. For the model of that id on a hub \
         write {text}@main"
    )]
    PathLike {
        /// What was asked for.
        text: String,
    },

    /// Nothing says where the local cache is.
    #[error(
        "{text}: no such file or folder; and to look for it as a model's id, a cache is needed: set HF_HOME or HF_HUB_CACHE to a folder"
    )]
    NoCacheFolder {
        /// What was asked for.
        text: String,
    },

    /// Not in the cache, and nothing may be fetched.
    #[error(
        "{id}@{revision}: no such file or folder, and not whole in the cache {cache:?}; nothing is fetched, for HF_HUB_OFFLINE or \
         TRANSFORMERS_OFFLINE is set. Unset it, or run `hf download {id} --revision {revision}` where there is a network"
    )]
    Offline {
        /// The model.
        id: String,
        /// Its revision.
        revision: String,
        /// The cache's folder.
        cache: PathBuf,
    },

    /// A setting that cannot be used.
    #[error("{name} {problem}")]
    Setting {
        /// The variable it usually comes from.
        name: &'static str,
        /// What is wrong with it and what would do.
        problem: &'static str,
    },

    /// The hub does not let us have it: HTTP 401 or 403.
    #[error(
        "{id}: no such file or folder here, and {host} refuses it (HTTP {status}), {}",
        refused(*gated, *with_token, page)
    )]
    Denied {
        /// The model.
        id: String,
        /// The hub's host.
        host: String,
        /// 401 or 403.
        status: u16,
        /// Whether a licence must be accepted first.
        gated: bool,
        /// Whether a token was shown.
        with_token: bool,
        /// The model's page.
        page: String,
    },

    /// The hub has no such model, revision or file.
    #[error(
        "{id}@{revision}: two things were tried: there is no such file or folder here, and {host} has no such {what} (HTTP \
         {status}). Check the spelling; a private model needs HF_TOKEN"
    )]
    NotFound {
        /// The model.
        id: String,
        /// Its revision.
        revision: String,
        /// The hub's host.
        host: String,
        /// What is not there: model, revision, or the file's name.
        what: String,
        /// What the hub answered.
        status: u16,
    },

    /// No connection, or one that breaks again and again.
    #[error(
        "{id}: no such file or folder, and it cannot be fetched from {host}: {reason}. Check the network (HTTPS_PROXY, HF_ENDPOINT \
         for a mirror) and run again: what has arrived is kept. Or `hf download {id} --local-dir DIR` elsewhere, and give DIR"
    )]
    Unreachable {
        /// The model.
        id: String,
        /// The host that did not answer.
        host: String,
        /// What happened.
        reason: String,
    },

    /// An answer that is none of the protocol's, or not to be trusted.
    #[error(
        "{id}: {host} gives {reason}. If HF_ENDPOINT names a mirror, try without it; else run again later, or give a folder"
    )]
    BadAnswer {
        /// The model.
        id: String,
        /// The host.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// What arrived is not what the hub says the file is.
    #[error(
        "{id}: {file} as it arrived has hash {found}, and {host} says {expected}. What arrived was removed; run again, and if it \
         happens again, look for a proxy or mirror that changes files"
    )]
    HashMismatch {
        /// The model.
        id: String,
        /// The file.
        file: String,
        /// The hub's host.
        host: String,
        /// SHA-256 or git hash, as the hub states it.
        expected: String,
        /// That of the bytes that came.
        found: String,
    },

    /// The model has no weights that can be read, or several that may be meant.
    #[error("{id}@{commit}: {}", which_weights(id, commit, found))]
    NoWeights {
        /// The model.
        id: String,
        /// The commit that was looked at.
        commit: String,
        /// Files that may hold weights; empty when there is none.
        found: Vec<String>,
    },

    /// A sharded set's index is damaged, or names a file that the model lacks.
    #[error("{id}: {reason}. The model itself is at fault; take another revision or model")]
    BadModel {
        /// The model.
        id: String,
        /// What is wrong.
        reason: String,
    },

    /// The cache cannot be read or written.
    #[error(
        "{path:?}: cannot {action}. Free disk space, correct the permissions, or set HF_HUB_CACHE to another folder"
    )]
    Disk {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// The receiver of the progress asked to stop. What has arrived is kept.
    #[error("{id}: stopped; what has arrived is kept, and the same command goes on from there")]
    Interrupted {
        /// The model.
        id: String,
    },
}

fn which_weights(id: &str, commit: &str, found: &[String]) -> String {
    match found {
        [] => "the model has no file of weights that is read here (.safetensors, .bin, .pth, .pt). Check that it is the one meant, or name \
               another revision"
            .to_owned(),
        found => format!(
            "its files do not say which of them holds the weights; candidates: {}. Download it with `hf download {id} --revision {commit} \
             --local-dir DIR` and give the file itself",
            found.join(", ")
        ),
    }
}

fn refused(gated: bool, with_token: bool, page: &str) -> String {
    match (gated, with_token) {
        (true, false) => format!(
            "for its licence must be accepted: do so at {page}, and set HF_TOKEN to a token of the account that did"
        ),
        (true, true) => format!(
            "for the account of HF_TOKEN has not accepted its licence, or not been let in yet: see {page}"
        ),
        (false, false) => {
            "and no token was shown: set HF_TOKEN if the model is private, or check the spelling".to_owned()
        }
        (false, true) => {
            "with the token of HF_TOKEN (or of HF_HOME/token): set one that is valid and may read this model, or unset it".to_owned()
        }
    }
}
