//! `keep TARGET INPUT FOLDER`: writes the files that an input of a target stands for into a folder, for the ordinary tests.

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [name, input, folder] = &arguments[..] else {
        panic!("keep TARGET INPUT FOLDER");
    };
    let target = fuzz::TARGETS.into_iter().find(|target| **name == *target.name).expect("a target");
    let input = std::fs::read(input).expect("an input");
    (target.files)(&input, folder.as_ref());
}
