//! `seeds FOLDER`: writes the inputs that each target begins with into `FOLDER/TARGET`.

use std::path::PathBuf;

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder"));
    for target in fuzz::TARGETS {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fuzz::scratch::write(&folder.join(target.name).join(format!("seed-{number:03}")), seed);
        }
    }
}
