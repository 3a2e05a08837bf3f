//! What the environment says about stores.

use std::fmt;
use std::path::PathBuf;

use crate::aws_profile;

/// How stores are reached. It holds secrets, which it does not show.
#[derive(Clone, Default)]
pub struct Settings {
    /// The variables of the stores, by their names in capital letters.
    variables: Vec<(String, String)>,
    /// Where files lie until they are uploaded; the folder `/tmp` if `None`.
    pub scratch: Option<PathBuf>,
    /// Where blocks of objects are kept.
    pub cache: Option<CacheFolder>,
}

/// A folder with copies of what was read from stores.
#[derive(Debug, Clone)]
pub struct CacheFolder {
    /// The folder.
    pub folder: PathBuf,
    /// The most that it takes, in bytes.
    pub limit: u64,
}

/// What the names of variables begin with that are about stores.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl Settings {
    /// What variables of the environment say: those that begin with `AWS_`, `GOOGLE_` or `AZURE_`, and `HOME`. One that is empty counts as
    /// absent.
    pub fn from_vars(variables: impl IntoIterator<Item = (String, String)>) -> Settings {
        let is_ours = |name: &str| name == "HOME" || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let variables = variables.into_iter().filter(|(name, value)| is_ours(name) && !value.trim().is_empty());
        Settings { variables: variables.collect(), ..Settings::default() }
    }

    fn var(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The settings of S3 by the names that `object_store` gives them. The environment has the last word over the profile.
    pub(crate) fn aws(&self) -> std::io::Result<Vec<(String, String)>> {
        let mut settings = Vec::new();
        let given_key = self.var("AWS_ACCESS_KEY_ID").is_some();
        for (name, value) in aws_profile::read(|name| self.var(name))? {
            // Halves of two pairs do not make one.
            let is_of_key = matches!(&*name, "aws_access_key_id" | "aws_secret_access_key" | "aws_session_token");
            if !(given_key && is_of_key) {
                settings.push((name, value));
            }
        }
        settings.extend(self.with_prefix("AWS_"));
        Ok(settings)
    }

    /// The same for the other stores: the variables that begin with `prefix`.
    pub(crate) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (String, String)> {
        let ours = self.variables.iter().filter(move |(name, _)| name.starts_with(prefix));
        ours.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect::<Vec<_>>().into_iter()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.iter().map(|(name, _)| name).collect();
        f.debug_struct("Settings")
            .field("variables", &names)
            .field("scratch", &self.scratch)
            .field("cache", &self.cache)
            .finish()
    }
}

/// Whether a setting is on, in the words that `object_store` takes.
pub(crate) fn is_true(value: &str) -> bool {
    matches!(&*value.trim().to_ascii_lowercase(), "1" | "true" | "on" | "yes" | "y")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        Settings::from_vars(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_environment_has_the_last_word_and_no_secret_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        #[expect(clippy::disallowed_methods, reason = "a throw-away file")]
        std::fs::write(
            &file,
            "[default]\naws_access_key_id = FILE\naws_secret_access_key = SECRET1\nregion = eu-x-1\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let of_file = settings(&[("AWS_SHARED_CREDENTIALS_FILE", file), ("PATH", "/bin"), ("AWS_REGION", "")]);
        let aws = of_file.aws().unwrap();
        assert!(
            aws.contains(&("aws_access_key_id".into(), "FILE".into()))
                && aws.contains(&("aws_region".into(), "eu-x-1".into()))
        );
        let of_both = settings(&[
            ("AWS_SHARED_CREDENTIALS_FILE", file),
            ("AWS_ACCESS_KEY_ID", "ENV"),
            ("AWS_SECRET_ACCESS_KEY", "SECRET2"),
        ]);
        let aws = of_both.aws().unwrap();
        assert_eq!(aws.iter().filter(|(name, _)| name == "aws_access_key_id").count(), 1, "{aws:?}");
        assert!(!aws.iter().any(|(_, value)| value == "SECRET1"));
        let shown = format!("{of_both:?}");
        assert!(
            shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("SECRET2") && !shown.contains("ENV"),
            "{shown}"
        );
    }
}
