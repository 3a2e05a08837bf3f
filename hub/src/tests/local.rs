//! Texts, settings, paths, and the cache without a hub.

use super::*;

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn offline(cache: &Path) -> HubSettings {
    HubSettings { cache: Some(cache.to_path_buf()), ..HubSettings::default() }
}

#[test]
fn ids_are_told_from_other_texts() {
    let parsed = |text| ModelId::parse(text).map(|id| (id.name, id.revision));
    let id = |name: &str, revision: &str| Some((name.to_owned(), revision.to_owned()));
    assert_eq!(parsed("openai/clip-vit-base-patch16"), id("openai/clip-vit-base-patch16", "main"));
    assert_eq!(parsed("a/b_c.d@v1.0"), id("a/b_c.d", "v1.0"));
    assert_eq!(parsed("a/b@refs/pr/1"), id("a/b", "refs/pr/1"));
    let too_long = format!("a/{}", "b".repeat(97));
    for text in [
        "", "a", "a/", "/a", "a/b/c", "./a", "../a", "a/..", "~/a", "a/.b", "a--b/c", "a/b--c", "a b/c", "a\\b/c",
        "a/b@", "a/b@../c", "a/b@/c", "a/b@c//d", "a/b@c d", "a/b@c?d", "a/b\0", "ä/b", &too_long,
    ] {
        assert_eq!(parsed(text), None, "{text:?}");
    }
}

#[test]
fn settings_come_from_the_variables_given_and_nothing_else() {
    let from = |vars: &[(&str, &str)]| {
        HubSettings::from_vars(|name| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    let cache = |vars| from(vars).cache.map(|path| path.display().to_string());
    let is = |path: &str| Some(path.to_owned());
    assert_eq!(cache(&[]), None);
    assert_eq!(cache(&[("HOME", "/me")]), is("/me/.cache/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/me"), ("XDG_CACHE_HOME", "/c")]), is("/c/huggingface/hub"));
    assert_eq!(cache(&[("HOME", "/me"), ("HF_HOME", "~/hf")]), is("/me/hf/hub"));
    assert_eq!(cache(&[("HF_HUB_CACHE", "/h"), ("HF_HOME", "/hf")]), is("/h"));
    assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")]), is("/hf/hub"));

    let plain = from(&[("HOME", "/me")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert!(!plain.offline && plain.token.is_none() && plain.proxy.is_none());
    assert_eq!(plain.token_file, Some("/me/.cache/huggingface/token".into()));
    assert_eq!(from(&[("HF_ENDPOINT", "http://mirror/hf/")]).endpoint, "http://mirror/hf");
    for (name, value, offline) in [
        ("HF_HUB_OFFLINE", "1", true),
        ("TRANSFORMERS_OFFLINE", "True", true),
        ("HF_HUB_OFFLINE", "0", false),
        ("HF_HUB_OFFLINE", "", false),
    ] {
        assert_eq!(from(&[(name, value)]).offline, offline, "{name}={value}");
    }
    let secret = |text: &str| Some(Secret::new(text.to_owned()));
    let proxies = [("HTTP_PROXY", "http://a"), ("https_proxy", "http://b")];
    assert_eq!(from(&proxies).proxy, secret("http://b"));
    let plain = [("HF_ENDPOINT", "http://mirror"), proxies[0], proxies[1]];
    assert_eq!(from(&plain).proxy, secret("http://a"));

    let token = from(&[("HF_TOKEN", " hf_abc\n")]);
    assert_eq!(token.token, secret("hf_abc"));
    assert!(!format!("{token:?}").contains("hf_abc"));
}

/// Even where a model's folder has the form of an id.
#[test]
fn an_existing_path_wins() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().to_str().unwrap();
    let found = resolve(text, &HubSettings::default(), &mut go_on).unwrap();
    assert_eq!((found.path.as_path(), found.source.as_str()), (folder.path(), text));
    // Tests run in the crate's folder.
    let found = resolve("src/tests", &HubSettings::default(), &mut go_on).unwrap();
    assert_eq!(found.source, "src/tests");
    assert!(ModelId::parse("src/tests").is_some());
}

#[test]
fn what_is_neither_path_nor_id_is_said_to_be() {
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("teachers/clip/b16", &offline(cache.path()), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::NoSuchPath { .. }), "{error}");
    let error = resolve("org/name", &HubSettings::default(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::NoCacheFolder { .. }), "{error}");
    assert!(error.to_string().contains("HF_HOME"), "{error}");
}

#[test]
fn offline_the_cache_is_used_and_its_absence_said() {
    let cache = tempfile::tempdir().unwrap();
    let settings = offline(cache.path());
    let missing = resolve("org/name@v2", &settings, &mut go_on).unwrap_err();
    let said = missing.to_string();
    assert!(matches!(missing, Error::Offline { .. }), "{said}");
    assert!(said.contains("HF_HUB_OFFLINE") && said.contains("hf download org/name --revision v2"), "{said}");

    // A configuration alone is not a model.
    fill(cache.path(), COMMIT, &[("config.json", "{}")]);
    let half = resolve("org/name", &settings, &mut go_on).unwrap_err();
    assert!(matches!(half, Error::Offline { .. }), "{half}");

    fill(cache.path(), COMMIT, &[("pytorch_model.bin", "weights")]);
    for text in ["org/name".to_owned(), format!("org/name@{COMMIT}")] {
        let found = resolve(&text, &settings, &mut go_on).unwrap();
        assert_eq!(found.source, format!("org/name@{COMMIT}"));
        assert!(found.path.join("pytorch_model.bin").is_file());
    }
}

#[test]
fn a_sharded_set_is_there_when_all_shards_are() {
    let cache = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    fill(cache.path(), COMMIT, &[("model.safetensors.index.json", index), ("1.safetensors", "x")]);
    assert!(resolve("org/name", &offline(cache.path()), &mut go_on).is_err());
    fill(cache.path(), COMMIT, &[("2.safetensors", "x")]);
    resolve("org/name", &offline(cache.path()), &mut go_on).unwrap();
}

/// The record of a branch is read with the same distrust as an answer of the hub.
#[test]
fn a_damaged_record_of_a_branch_leads_nowhere() {
    let cache = tempfile::tempdir().unwrap();
    fill(cache.path(), COMMIT, &[("model.safetensors", "x")]);
    for text in ["../../../../etc", "", "89abcdef", &"a".repeat(1000)] {
        fs::write(cache.path().join("models--org--name/refs/main"), text).unwrap();
        let error = resolve("org/name", &offline(cache.path()), &mut go_on).unwrap_err();
        assert!(matches!(error, Error::Offline { .. }), "{error}");
    }
}

/// The folder before the slash exists here: a mistyped path, unless the cache has a model of that id or a revision says that it is one.
#[test]
fn a_mistyped_path_is_not_asked_of_a_hub() {
    // Tests run in the folder of the crate, which has this one.
    let parent = "src";
    let cache = tempfile::tempdir().unwrap();
    let text = format!("{parent}/nothere");
    let mut asked = 0;
    let mut ask = |text: &str| {
        resolve(text, &offline(cache.path()), &mut |_| {
            asked += 1;
            ControlFlow::Continue(())
        })
    };
    let error = ask(&text).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::NotInFolder { .. }), "{said}");
    assert!(said.starts_with(&format!("{text} does not exist here; {parent}/ does")), "{said}");
    assert!(said.contains(&format!("{text}@main")), "{said}");
    assert!(matches!(ask(&format!("{text}@main")), Err(Error::Offline { .. })));
    assert!(matches!(ask("no-such-folder/nothere"), Err(Error::Offline { .. })));
    assert_eq!(asked, 0);
}

/// Nothing before the slash exists, but no model is called like that, unless a revision says that it is one.
#[test]
fn what_names_a_file_or_a_run_is_not_asked_of_a_hub() {
    let cache = tempfile::tempdir().unwrap();
    let ask = |text: &str| resolve(text, &offline(cache.path()), &mut go_on).unwrap_err();
    for text in ["clip-tiny/model.safetensors", "mae/visualize.PTH", "runs/r1", "teachers/clip-b16"] {
        let error = ask(text);
        assert!(matches!(error, Error::PathLike { .. }), "{error}");
        let error = ask(&format!("{text}@main"));
        assert!(matches!(error, Error::Offline { .. }), "{error}");
    }
    let error = ask("openai/clip-vit-base-patch16");
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    fill(cache.path(), COMMIT, &[("model.safetensors", "x")]);
    assert!(ask("org/other.bin").to_string().contains("taken for a path"));
}
