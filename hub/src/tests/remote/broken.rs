//! Connections that break, servers that are busy or gone, bytes that are not what was promised.

use super::*;

/// What is damaged in the cache is told by the file to delete, and fetched again once it is.
#[test]
fn a_damaged_blob_is_named_and_fetched_again() {
    let world = World::new(hub());
    let found = world.resolve("org/name").unwrap();
    let blob = found.path.join("model.safetensors").canonicalize().unwrap();
    fs::write(&blob, &weights()[..100]).unwrap();
    match read_weights(&found.path) {
        Err(error @ weights::Error::DamagedDownload { .. }) => {
            let said = error.to_string();
            assert!(said.contains(&format!("delete {blob:?}")) && said.contains("safetensors"), "{said}");
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(&blob).unwrap();
    world.assert_whole(&world.resolve("org/name").unwrap());
    // The same bytes elsewhere are nobody's download.
    let copy = world.cache.path().join("model.safetensors");
    fs::write(&copy, &weights()[..100]).unwrap();
    let error = read_weights(&copy).unwrap_err();
    assert!(matches!(error, weights::Error::BadSafetensors { .. }), "{error}");
}

#[test]
fn a_name_that_is_not_resolved_is_no_broken_connection() {
    let mut world = World::new(hub());
    // Longer than a part of a name may be (RFC 1035), so no resolver asks a network for it; and no name below .invalid exists (RFC 6761).
    world.settings.endpoint = format!("http://{}.invalid", "a".repeat(64));
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(said.contains("resolved") || said.contains("name is not known"), "{said}");
}

#[test]
fn a_connection_that_breaks_is_resumed_where_it_broke() {
    let hub = hub();
    hub.cuts.lock().unwrap().extend([300_000, 0, 1000]);
    let world = World::new(hub);
    let mut retries = 0;
    let found = resolve("org/name", &world.settings, &mut |progress| {
        retries += u32::from(matches!(progress, Progress::Retrying { .. }));
        ControlFlow::Continue(())
    });
    world.assert_whole(&found.unwrap());
    let range = |start: u64| Some(format!("bytes={start}-"));
    assert_eq!(world.server.ranges(), [None, range(300_000), range(300_000), range(301_000)]);
    assert_eq!(retries, 3);
}

#[test]
fn a_connection_that_breaks_always_is_given_up_and_what_came_is_kept() {
    let hub = hub();
    let cuts = Arc::clone(&hub.cuts);
    cuts.lock().unwrap().extend([5000, 0, 0, 0, 0, 0]);
    let world = World::new(hub);
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert_eq!(fs::metadata(world.incomplete()).unwrap().len(), 5000);
    assert!(!world.root().join("snapshots").join(COMMIT).join("model.safetensors").exists());
    cuts.lock().unwrap().clear();
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(world.server.ranges().last().unwrap().as_deref(), Some("bytes=5000-"));
}

#[test]
fn what_an_earlier_run_left_is_used_if_it_fits() {
    let whole = weights();
    let wrong = vec![1; 5000];
    let long = vec![1; whole.len() + 1];
    for (left, requests) in [(&whole[..5000], 1), (&whole[..], 0), (&wrong, 2), (&long, 1)] {
        let world = World::new(hub());
        world.leave(left);
        world.assert_whole(&world.resolve("org/name").unwrap());
        assert_eq!(world.server.ranges().len(), requests);
    }
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let world = World::new(Hub { no_ranges: true, ..hub() });
    world.leave(&weights()[..5000]);
    world.assert_whole(&world.resolve("org/name").unwrap());
    assert_eq!(world.server.ranges(), [Some("bytes=5000-".to_owned())]);
}

#[test]
fn bytes_with_another_hash_are_refused() {
    let world = World::new(Hub { corrupts: true, ..hub() });
    for left in [0, 5000] {
        world.leave(&weights()[..left]);
        let (error, said) = world.error("org/name");
        assert!(matches!(error, Error::HashMismatch { .. }), "{said}");
        assert!(said.contains(&sha256(&weights())) && said.contains("model.safetensors"), "{said}");
        assert!(!world.incomplete().exists());
        assert!(!world.root().join("snapshots").join(COMMIT).join("model.safetensors").exists());
        assert!(!world.root().join("refs/main").exists());
    }
}

#[test]
fn a_busy_server_is_asked_again_and_not_for_ever() {
    let hub = hub();
    let busy = Arc::clone(&hub.busy);
    *busy.lock().unwrap() = 4;
    let world = World::new(hub);
    world.assert_whole(&world.resolve("org/name").unwrap());

    fs::remove_dir_all(world.root()).unwrap();
    *busy.lock().unwrap() = usize::MAX;
    let asked = world.server.requests().len();
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(said.contains("503") && said.contains("5 attempts"), "{said}");
    assert_eq!(world.server.requests().len(), asked + 5);
}

#[test]
fn without_a_network_the_cache_helps_if_it_has_weights() {
    let mut world = World::new(hub());
    let closed = Closed::new();
    world.settings.endpoint = format!("http://{}", closed.address());
    let (error, said) = world.error("org/name");
    assert!(matches!(error, Error::Unreachable { .. }), "{said}");
    assert!(said.contains("HTTPS_PROXY"), "{said}");

    fill(&world.cache.path().join("hub"), COMMIT, &[("model.safetensors", "x")]);
    let mut unconfirmed = 0;
    let found = resolve("org/name", &world.settings, &mut |progress| {
        unconfirmed += u32::from(matches!(progress, Progress::Unconfirmed { .. }));
        ControlFlow::Continue(())
    });
    assert_eq!(found.unwrap().source, format!("org/name@{COMMIT}"));
    assert_eq!(unconfirmed, 1);
}
