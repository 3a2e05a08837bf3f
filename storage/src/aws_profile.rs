//! `~/.aws/credentials` and `~/.aws/config`: keys, region and endpoint of a profile.

use std::io;
use std::path::PathBuf;

/// Names in the files, and the names that `object_store` gives them.
const NAMES: [(&str, &str); 5] = [
    ("aws_access_key_id", "aws_access_key_id"),
    ("aws_secret_access_key", "aws_secret_access_key"),
    ("aws_session_token", "aws_session_token"),
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint_url"),
];

/// What a profile must not ask for, because nothing here does it.
const UNSUPPORTED: [&str; 3] = ["sso_session", "sso_start_url", "credential_process"];

/// The settings of the profile `AWS_PROFILE`, else of `default`; `var` gives variables.
///
/// # Errors
/// A profile that was asked for by name and is in neither file, or that takes its keys from single sign-on or a program.
pub(crate) fn read<'a>(var: impl Fn(&str) -> Option<&'a str>) -> io::Result<Vec<(String, String)>> {
    let asked = var("AWS_PROFILE");
    let profile = asked.unwrap_or("default");
    let file = |name: &str, variable: &str| {
        let path =
            var(variable).map(PathBuf::from).or_else(|| Some(PathBuf::from(var("HOME")?).join(".aws").join(name)))?;
        std::fs::read_to_string(path).ok()
    };
    let credentials = file("credentials", "AWS_SHARED_CREDENTIALS_FILE").and_then(|text| section(&text, profile));
    let config = file("config", "AWS_CONFIG_FILE").and_then(|text| match profile {
        "default" => section(&text, "default"),
        name => section(&text, &format!("profile {name}")),
    });
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
    if let (Some(name), None, None) = (asked, &credentials, &config) {
        return Err(invalid(format!(
            "AWS_PROFILE={name}: there is no such profile in ~/.aws/credentials or ~/.aws/config"
        )));
    }
    let entries: Vec<_> = config.into_iter().chain(credentials).flatten().collect();
    let has_key = entries.iter().any(|(name, _)| name == "aws_access_key_id") || var("AWS_ACCESS_KEY_ID").is_some();
    if let Some(name) = UNSUPPORTED.iter().find(|name| !has_key && entries.iter().any(|(key, _)| key == *name)) {
        return Err(invalid(format!(
            "profile {profile}: {name} is not supported; `aws configure export-credentials --format env` prints variables that are"
        )));
    }
    let renamed = |(name, value): (String, String)| {
        NAMES.iter().find(|(key, _)| *key == name).map(|(_, ours)| ((*ours).to_owned(), value))
    };
    Ok(entries.into_iter().filter_map(renamed).collect())
}

/// The entries of a section of an INI file; `None` if it has no such section.
fn section(text: &str, wanted: &str) -> Option<Vec<(String, String)>> {
    let mut entries = None;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name) {
            match name.split_whitespace().eq(wanted.split_whitespace()) {
                true => drop(entries.get_or_insert_with(Vec::new)),
                false if entries.is_some() => break,
                false => {}
            }
        } else if let (Some(entries), Some((name, value)), false) = (&mut entries, line.split_once('='), is_nested) {
            entries.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

    use super::*;

    #[test]
    fn profiles_are_found_in_both_files() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(home.path().join(".aws").join(name), text).unwrap();
        write(
            "credentials",
            "# mine\n[default]\naws_access_key_id=A\naws_secret_access_key = B=C\n\n[work]\naws_access_key_id = W\n",
        );
        write(
            "config",
            "[default]\nregion = r1\n[profile  work]\nregion = r2\nendpoint_url = http://e\ns3 =\n  region = nested\n[profile sso]\nsso_session = x\n",
        );
        let home = home.path().to_str().unwrap().to_owned();
        let of = |profile: Option<&'static str>| {
            read(|name| match name {
                "HOME" => Some(&*home),
                "AWS_PROFILE" => profile,
                _ => None,
            })
        };
        let pairs =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
        assert_eq!(
            of(None).unwrap(),
            pairs(&[("aws_region", "r1"), ("aws_access_key_id", "A"), ("aws_secret_access_key", "B=C")])
        );
        assert_eq!(
            of(Some("work")).unwrap(),
            pairs(&[("aws_region", "r2"), ("aws_endpoint_url", "http://e"), ("aws_access_key_id", "W")])
        );
        assert!(of(Some("none")).unwrap_err().to_string().contains("AWS_PROFILE=none"));
        assert!(of(Some("sso")).unwrap_err().to_string().contains("sso_session"));
    }
}
