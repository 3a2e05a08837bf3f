use super::*;
use crate::data::rejects::REJECTS;

fn spoil(world: &World, image: &str, keep: usize) {
    let path = world.images_dir().join(image);
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..keep.min(bytes.len() / 2)]).unwrap();
}

/// Damaged images are named, and the run is the same however often it stops and with however many threads.
#[test]
fn others_take_the_places_of_damaged_images() {
    let world = world();
    spoil(&world, "a/0000.png", 0);
    // Its neighbor too, so that the image after both is taken; and the last, after which comes the first.
    spoil(&world, "a/0002.png", 40);
    let last = fs::read_dir(world.images_dir().join("b")).unwrap();
    let last = last.map(|e| e.unwrap().file_name().into_string().unwrap());
    let last = format!("b/{}", last.max().unwrap());
    spoil(&world, &last, 40);

    let whole = tune(&world, "whole", &[]);
    let finished = || world.path("cut").join(FINETUNE_FILE).exists();
    let mut threads = ["1", "3"].into_iter().cycle();
    while !finished() {
        let more = ["--stop-after", "2", "--threads", threads.next().unwrap()];
        tune(&world, "cut", &more);
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), losses(&whole));
    assert!(tensors(&cut) == tensors(&whole));

    let rejects = fs::read_to_string(whole.join(REJECTS)).unwrap();
    assert_eq!(fs::read_to_string(cut.join(REJECTS)).unwrap(), rejects);
    let keys: Vec<String> = rejects
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["a/0000.png", "a/0002.png", &last]);

    for class in ["a", "b"] {
        for entry in fs::read_dir(world.images_dir().join(class)).unwrap() {
            fs::write(entry.unwrap().path(), b"no image").unwrap();
        }
    }
    let message = error(&world, "none", &[]);
    assert!(message.contains("can be decoded"), "{message}");
}
