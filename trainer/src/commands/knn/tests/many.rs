//! Many processes share the images.

use super::*;
use crate::dist::tests::in_many;

fn run_in(size: usize, args: &[String]) -> Vec<anyhow::Result<String>> {
    in_many(size, |place| {
        let mut out = Vec::new();
        crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), Some(place), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    })
}

/// Each image counts once, for any number of processes, also if images cannot be decoded and if there are more processes than batches; and to the
/// last digit, since the batches are those of one process.
#[test]
fn any_number_of_processes_finds_the_same() {
    let world = world();
    run(&world.pretrain_args("run", &["--set", "optim.lr=0.05"])).unwrap();
    // The first batch of the test images holds nothing that can be used.
    #[allow(clippy::disallowed_methods, reason = "what a user has is not written by our code")]
    for i in 0..3 {
        std::fs::write(world.path("test").join("a").join(format!("-{i}.png")), b"nothing").unwrap();
    }
    let more = ["--batch-size", "3", "--model", "pixels:16", "--json"];
    let args = args(&world, &world.path("run"), &more);
    let alone = run(&args).unwrap();
    let [of_run, of_pixels] = &parse(&alone)[..] else { panic!("two models: {alone}") };
    assert_eq!((of_run.sets.train_images, of_run.sets.test_images, of_run.sets.skipped_images), (12, 8, 3));
    assert_ne!(of_run.accuracy["mean"], of_pixels.accuracy["pixels"]);
    for size in [2, 3, 7] {
        let printed: Vec<String> = run_in(size, &args).into_iter().map(Result::unwrap).collect();
        assert_eq!(printed[0], alone, "{size} processes");
        assert!(printed[1..].iter().all(String::is_empty), "only rank 0 prints");
    }
    let saved = std::fs::read(world.path("run").join("eval/knn.json")).unwrap();
    assert_eq!(&serde_json::from_slice::<KnnResult>(&saved).unwrap(), of_run);
}

#[test]
fn processes_that_evaluate_different_things_are_refused() {
    let world = world();
    write_images(&world.path("other"), 8, 77);
    let refused = in_many(2, |place| {
        let mut args = args(&world, Path::new("pixels"), &[]);
        if place.rank == 1 {
            let test = world.path("test").display().to_string();
            let at = args.iter().position(|arg| *arg == test).unwrap();
            args[at] = world.path("other").display().to_string();
        }
        let cli = Cli::try_parse_from(args).unwrap();
        let error = crate::run(&cli, &HubSettings::default(), Some(place), &mut Vec::new()).unwrap_err();
        format!("{error:#}")
    });
    for message in refused {
        assert!(
            message.contains("rank 1 differs from rank 0 in --test: 8 images in a folder source (SHA-256"),
            "{message}"
        );
    }
}
