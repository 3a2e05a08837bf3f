//! What is refused, by the hub or by us, and what the user is told to do.

use super::*;

#[test]
fn each_refusal_says_what_to_do() {
    for (status, code, with_token, words) in [
        (401, "GatedRepo", false, "license must be accepted: do so at http://127.0.0.1"),
        (403, "GatedRepo", true, "has not accepted its license"),
        (401, "", true, "set one that is valid"),
        (403, "", false, "no token was shown: set HF_TOKEN"),
        (401, "RepoNotFound", false, "no such file or folder here, and 127.0.0.1"),
        (404, "RepoNotFound", true, "has no such model"),
        (404, "RevisionNotFound", true, "has no such revision"),
        (404, "", true, "has no such model or revision"),
        (418, "", true, "gives HTTP 418"),
    ] {
        let mut world = World::new(Hub { refuses: Some((status, code)), ..hub() });
        if !with_token {
            world.settings.token = None;
        }
        let (_, said) = world.error("org/name@v3");
        assert!(said.contains(words), "{status} {code}: {said}");
        assert!(said.contains("org/name"), "{said}");
        // What will not change is not asked twice.
        assert_eq!(world.server.requests().len(), 1);
    }
    let (error, said) = World::new(hub()).error("org/name@nosuch");
    assert!(matches!(error, Error::NotFound { .. }), "{said}");
    assert!(said.contains("org/name@nosuch"), "{said}");
}

#[test]
fn names_that_leave_the_folder_are_refused() {
    for name in ["../evil.safetensors", "/etc/x", "a/../../b", "a\\b", "x:y", "a\0b"] {
        let world = World::new(Hub { also_listed: vec![name.to_owned()], ..hub() });
        let (error, said) = world.error("org/name");
        assert!(matches!(error, Error::BadAnswer { .. }), "{name:?}: {said}");
    }
    let bad = |hub: Hub, words: &str| {
        let world = World::new(hub);
        let (_, said) = world.error("org/name");
        assert!(said.contains(words), "{said}");
        // Nothing but the cache is in its folder, and no link to anywhere in there.
        let names: Vec<_> = fs::read_dir(world.cache.path()).unwrap().collect();
        assert!(names.len() <= 1, "{names:?}");
    };
    let commit = Some("../../../../evil".to_owned());
    bad(Hub { commit, ..hub() }, "a commit that is none");
    let etag = Some("../".repeat(21) + "x");
    bad(Hub { etag, ..hub() }, "neither SHA-256 nor git's");

    let mut sharded = hub();
    sharded.files.remove("model.safetensors");
    let index = br#"{"weight_map": {"a": "../../evil"}}"#.to_vec();
    sharded.files.insert("model.safetensors.index.json".to_owned(), index);
    bad(sharded, "which is not a plain file name");
}

#[test]
fn sizes_are_bounded() {
    let bad = |hub: Hub, words: &str| {
        let (error, said) = World::new(hub).error("org/name");
        assert!(matches!(error, Error::BadAnswer { .. }), "{said}");
        assert!(said.contains(words), "{said}");
    };
    let padding = 17 << 20;
    bad(Hub { padding, ..hub() }, "bytes about the model");
    let mut large = hub();
    large.size = Some(1 << 60);
    bad(large.clone(), "model.safetensors a size of");
    large.size = Some(20 << 20);
    large.files.insert("config.json".to_owned(), vec![b' '; 2000]);
    bad(large, "config.json a size of");
    let also_listed = (0..50_001).map(|i| i.to_string()).collect();
    bad(Hub { also_listed, ..hub() }, "more than 50000 files");
}

#[test]
fn a_model_without_weights_that_are_read_is_refused() {
    let mut hub = hub();
    hub.files.retain(|name, _| name.ends_with(".json"));
    for name in ["a.pth", "b.pth"] {
        hub.files.insert(name.to_owned(), vec![0; 10]);
    }
    let (error, said) = World::new(hub).error("org/name");
    assert!(matches!(error, Error::NoWeights { .. }), "{said}");
    assert!(said.contains("candidates: a.pth, b.pth"), "{said}");
    let (error, said) = World::new(Hub::default()).error("org/name");
    assert!(matches!(error, Error::NoWeights { .. }), "{said}");
    assert!(said.contains("no file of weights") && !error.to_string().contains("candidates"), "{said}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let mut world = World::new(hub());
    world.settings.token = Some(Secret::new("two\r\nlines".to_owned()));
    let (_, said) = world.error("org/name");
    assert!(said.contains("HF_TOKEN") && !said.contains("two"), "{said}");
    world.settings.token = None;
    world.settings.proxy = Some(Secret::new("http://me:word@".to_owned()));
    let (_, said) = world.error("org/name");
    assert!(said.contains("HTTPS_PROXY") && !said.contains("word"), "{said}");
    for endpoint in ["huggingface.co", "ftp://x", "https://me:word@x", "http://x?y", ""] {
        world.settings.endpoint = endpoint.to_owned();
        let (_, said) = world.error("org/name");
        assert!(said.contains("HF_ENDPOINT") && !said.contains("word"), "{said}");
    }
    assert!(world.server.requests().is_empty());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut world = World::new(hub());
    let file = world.cache.path().join("file");
    fs::write(&file, "").unwrap();
    world.settings.cache = Some(file.clone());
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Disk { .. }), "{said}");
    assert!(said.contains("HF_HUB_CACHE") && said.contains(file.to_str().unwrap()), "{said}");
}
