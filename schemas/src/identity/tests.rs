use super::*;
use crate::Affine;
use crate::testing::{identity, teacher};

/// What `edit` to the identity is refused as.
fn refused(edit: fn(&mut CacheIdentity)) -> (String, String, String, usize) {
    let mut requested = identity();
    edit(&mut requested);
    assert_ne!(requested.fingerprint(), identity().fingerprint());
    match identity().check_same(Path::new("c/cache.json"), &requested) {
        Err(Error::IdentityChanged { differences, .. }) => {
            let FieldDifference { field, cached, requested } = differences[0].clone();
            (field, cached, requested, differences.len() - 1)
        }
        other => panic!("{other:?}"),
    }
}

fn named(field: &str, cached: &str, requested: &str) -> (String, String, String, usize) {
    (field.to_string(), cached.to_string(), requested.to_string(), 0)
}

#[test]
fn a_changed_identity_is_refused_by_field() {
    assert_eq!(refused(|id| id.views.seed = 8), named("views.seed", "7", "8"));
    assert_eq!(refused(|id| id.views.views = 3), named("views.views", "2", "3"));
    assert_eq!(refused(|id| id.image_code = "test 2".to_string()), named("image_code", "\"test 1\"", "\"test 2\""));
    assert_eq!(refused(|id| id.plan.part_samples = 5), named("plan.part_samples", "4", "5"));
    assert_eq!(
        refused(|id| id.label_names.truncate(2)),
        named("label_names", "3 classes, alone there \"cat\"", "2 classes")
    );
    let flip = |id: &mut CacheIdentity| {
        id.views.policy = ViewPolicy::Rrc { scale: [0.2, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.0 };
    };
    assert_eq!(refused(flip), named("views.flip", "0.5", "0.0"));
    let policy = refused(|id| id.views.policy = ViewPolicy::Center);
    assert_eq!(policy, ("views.policy".to_string(), "\"rrc\"".to_string(), "\"center\"".to_string(), 3));
    // The parts become smaller by themselves where an image has more rows.
    let views = refused(|id| {
        id.views.views = 3;
        id.plan.part_samples = 3;
    });
    assert_eq!(views, ("views.views".to_string(), "2".to_string(), "3".to_string(), 1));
    // Nobody reads the names of a thousand classes.
    let labels = refused(|id| {
        id.plan.part_samples = 3;
        id.label_names = vec!["a name of many letters ".repeat(100); 1000];
    });
    assert!(labels.0.starts_with("label_names"), "{labels:?}");
    assert!(labels.1.len() < 200 && labels.2.len() < 200, "{labels:?}");
    assert!(identity().check_same(Path::new("x"), &identity()).is_ok());
}

#[test]
fn all_that_differs_is_said_at_once() {
    let mut requested = identity();
    requested.views.seed = 8;
    requested.image_code = "test 2".to_string();
    requested.label_names = vec!["ox".to_string(); 100];
    let said = identity().check_same(Path::new("c/cache.json"), &requested).unwrap_err().to_string();
    for words in [
        "views.seed = 7, but views.seed = 8 is asked for",
        "image_code = \"test 1\", but image_code = \"test 2\" is asked for",
        "other classes or another order of them (3 classes, alone there \"ant\", \"bee\", \"cat\"; now 100 classes, alone there \"ox\"",
        "give the images as they were",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert!(said.len() < 2000, "{said}");
}

#[test]
fn codecs_that_differ_are_told_by_name_and_not_by_their_tables() {
    let width = teacher("clip", Codec::F16).width as usize;
    let i8 = teacher(
        "clip",
        Codec::I8(Affine { scale: vec![0.5; width], offset: vec![0.0; width], outliers: Vec::new(), images: 1 }),
    );
    let f16 = teacher("clip", Codec::F16);
    for (cached, requested) in [(&i8, &f16), (&f16, &i8)] {
        match cached.check_same(Path::new("t"), requested) {
            Err(Error::IdentityChanged { differences, .. }) => {
                let names = |t: &TeacherIdentity| format!("{:?}", t.codec.name());
                let codec =
                    FieldDifference { field: "codec".to_owned(), cached: names(cached), requested: names(requested) };
                assert_eq!(differences, [codec]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_changed_teacher_is_refused_by_field_but_its_source_may_move() {
    let cached = teacher("clip", Codec::F16);
    let check = |edit: fn(&mut TeacherIdentity)| {
        let mut requested = cached.clone();
        edit(&mut requested);
        match cached.check_same(Path::new("t"), &requested) {
            Ok(()) => {
                assert_eq!(requested.fingerprint(), cached.fingerprint());
                None
            }
            Err(Error::IdentityChanged { differences, .. }) => {
                assert_ne!(requested.fingerprint(), cached.fingerprint());
                Some(differences[0].field.clone())
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(check(|t| t.source = "/elsewhere".to_string()), None);
    assert_eq!(check(|t| t.weights_sha256 = "00".repeat(32)).as_deref(), Some("weights_sha256"));
    assert_eq!(check(|t| t.codec = Codec::F32).as_deref(), Some("codec"));
    assert_eq!(check(|t| t.norm_eps = 1e-6).as_deref(), Some("norm_eps"));
    assert_eq!(check(|t| t.precision = "bf16".to_string()).as_deref(), Some("precision"));
    assert_eq!(check(|t| t.batch_size = 5).as_deref(), Some("batch_size"));
    assert_eq!(check(|t| t.batches = Batches::Rows).as_deref(), Some("batches"));
    // What follows from another setting is not what was changed.
    let other_weights = |t: &mut TeacherIdentity| {
        t.activation = "another".to_string();
        t.weights_sha256 = "00".repeat(32);
    };
    assert_eq!(check(other_weights).as_deref(), Some("weights_sha256"));
    let other_precision = |t: &mut TeacherIdentity| {
        t.input_size += 1;
        t.precision = "bf16".to_string();
    };
    assert_eq!(check(other_precision).as_deref(), Some("precision"));
}

#[test]
fn impossible_identities_are_refused_by_field() {
    let check = |field: &str, edit: fn(&mut CacheIdentity)| {
        let mut id = identity();
        edit(&mut id);
        match id.validate(Path::new("c/cache.json")) {
            Err(Error::IdentityValue { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    check("dataset.kind", |id| id.dataset.kind.clear());
    check("dataset.digest", |id| id.dataset.digest = "AB".repeat(32));
    check("plan.samples", |id| id.plan.samples = 11);
    check("plan.part_samples", |id| id.plan.part_samples = 0);
    check("plan.part_samples", |id| {
        (id.plan, id.dataset.samples) = (Plan { samples: u64::MAX, part_samples: 1 }, u64::MAX)
    });
    check("image_code", |id| id.image_code.clear());
    check("views.filter", |id| id.views.filter.clear());
    check("views.views", |id| id.views.views = 0);
    check("views.scale", |id| id.views.policy = ViewPolicy::Rrc { scale: [0.0, 1.0], ratio: [1.0, 1.0], flip: 0.0 });
    check("views.ratio", |id| id.views.policy = ViewPolicy::Rrc { scale: [0.1, 1.0], ratio: [2.0, 1.0], flip: 0.0 });
    check("views.flip", |id| {
        id.views.policy = ViewPolicy::Rrc { scale: [0.1, 1.0], ratio: [1.0, 1.0], flip: f64::NAN }
    });
    let edge = ViewPolicy::Rrc { scale: [1.0, 1.0], ratio: [0.1, 0.1], flip: 1.0 };
    for policy in [edge, ViewPolicy::Center, ViewPolicy::Full] {
        let mut id = identity();
        id.views.policy = policy;
        id.validate(Path::new("x")).unwrap();
    }
}

#[test]
fn impossible_teachers_are_refused_by_field() {
    teacher("dino", Codec::F32).validate(Path::new("x")).unwrap();
    let check = |field: &str, edit: fn(&mut TeacherIdentity)| {
        let mut t = teacher("clip", Codec::F16);
        edit(&mut t);
        match t.validate(Path::new("teacher.json")) {
            Err(Error::IdentityValue { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    check("arch", |t| t.arch.clear());
    check("weights_sha256", |t| t.weights_sha256.truncate(63));
    check("precision", |t| t.precision = "f64".to_string());
    check("norm_eps", |t| t.norm_eps = f64::NAN);
    check("mean", |t| t.mean[1] = f64::INFINITY);
    check("std", |t| t.std[2] = 0.0);
    check("grid", |t| t.grid = 0);
    check("batch_size", |t| t.batch_size = 0);
    check("input_size", |t| t.input_size = 47);
    check("grid", |t| (t.grid, t.patch_size, t.input_size, t.width) = (1 << 20, 1, 1 << 20, 1 << 20));
}

#[test]
fn identities_survive_json() {
    for policy in [ViewPolicy::rrc(), ViewPolicy::Center, ViewPolicy::Full] {
        let mut id = identity();
        id.views.policy = policy;
        let value = json::to_value(&id);
        assert_eq!(serde_json::from_value::<CacheIdentity>(value).unwrap(), id);
    }
    assert_eq!(
        json::canonical(&json::to_value(&identity().views)),
        r#"{"filter":"bicubic","flip":0.5,"policy":"rrc","ratio":[0.75,1.3333333333333333],"scale":[0.2,1.0],"seed":7,"views":2}"#
    );
}
