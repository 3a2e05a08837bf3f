//! Tar shards. The first byte selects images and labels (`SPECS`), and whether the checksums of headers are computed.

use std::path::Path;
use std::sync::LazyLock;

use tempfile::TempDir;

use crate::{scratch, sources};

const SPECS: [&str; 5] = ["", "::*", "::*.left.*", "::label=json", "::*,label=txt"];

/// Set in the first byte of an input whose checksums stay as they are.
const AS_IT_IS: u8 = 0x80;

const BLOCK: usize = 512;

/// Gives every header the checksum of its bytes, going from header to header by the sizes in them.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|&byte| byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = match header[124] {
            0x80 => u64::from_be_bytes(header[128..136].try_into().expect("8 bytes")),
            _ => {
                let digits = header[124..136].iter().filter(|byte| byte.is_ascii_digit());
                digits.fold(0u64, |size, digit| (size << 3) + u64::from(digit & 7))
            }
        };
        let Some(next) =
            usize::try_from(size).ok().and_then(|size| at.checked_add(size.checked_next_multiple_of(BLOCK)?))
        else {
            break;
        };
        at = next;
    }
    tar
}

fn made(input: &[u8]) -> Option<(&'static str, Vec<u8>)> {
    let (&first, tar) = input.split_first()?;
    let spec = SPECS[usize::from(first & !AS_IT_IS) % SPECS.len()];
    let tar = tar.to_vec();
    Some((spec, if first & AS_IT_IS == 0 { with_checksums(tar) } else { tar }))
}

pub fn files(input: &[u8], dir: &Path) {
    if let Some((_, tar)) = made(input) {
        scratch::write(&dir.join("shard.tar"), &tar);
    }
}

pub fn run(input: &[u8]) {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch::folder);
    let Some((spec, tar)) = made(input) else {
        return;
    };
    let path = FOLDER.path().join("shard.tar");
    scratch::write(&path, &tar);
    sources::read(&format!("{}{spec}", path.display()), tar.len());
}

/// A member of an archive.
struct Member<'a> {
    name: &'a str,
    kind: tar::EntryType,
    data: &'a [u8],
}

fn archive(members: &[Member<'_>], gnu: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = if gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
        header.set_entry_type(member.kind);
        header.set_mode(0o644);
        header.set_size(member.data.len() as u64);
        if member.kind.is_symlink() {
            header.set_link_name("elsewhere").expect("a name");
        }
        builder.append_data(&mut header, member.name, member.data).expect("a member");
    }
    builder.into_inner().expect("an archive")
}

pub fn seeds() -> Vec<Vec<u8>> {
    use tar::EntryType as Kind;
    let file = |name, data| Member { name, kind: Kind::Regular, data };
    let long = "long/".repeat(30) + "0.jpg";
    let png = b"\x89PNG\r\n\x1a\n";
    let sets: [Vec<Member<'_>>; 7] = [
        vec![file("0.jpg", b"image"), file("0.cls", b"7"), file("1.jpg", b"image"), file("1.cls", b"8")],
        vec![
            file("a/0.left.png", png),
            file("a/0.right.png", png),
            file("a/0.class", b"cat"),
            file("a/0.txt", b"text"),
        ],
        vec![file(&long, b"image"), file("0.json", b"{}"), file(".hidden.jpg", b"x"), file("0.heic", b"x")],
        vec![
            Member { name: "d", kind: Kind::Directory, data: b"" },
            Member { name: "d/0.jpg", kind: Kind::Symlink, data: b"" },
            file("d/1.jpg", b"image"),
            file("d/1.label.txt", b"dog"),
        ],
        vec![Member { name: "0.jpg", kind: Kind::Continuous, data: b"image" }, file("0.jpg", b"again")],
        vec![
            Member { name: "pax", kind: Kind::XHeader, data: b"18 path=x/long.jpg\n16 size=5\n" },
            file("0.jpg", b"image"),
            Member { name: "pax", kind: Kind::XGlobalHeader, data: b"14 comment=hi\n" },
        ],
        vec![Member { name: "0.jpg", kind: Kind::GNUSparse, data: b"image" }, file("1.jpg", b"image")],
    ];
    let mut seeds = Vec::new();
    for (number, members) in sets.iter().enumerate() {
        for gnu in [true, false] {
            if !gnu && members.iter().any(|member| member.name.len() > 100) {
                continue;
            }
            let tar = archive(members, gnu);
            seeds.push([&[number as u8 % SPECS.len() as u8][..], &tar].concat());
            if number == 0 {
                // Joined to another, and followed by what is none.
                seeds.push([&[0][..], &tar, &tar].concat());
                seeds.push([&[AS_IT_IS][..], &tar, b"junk behind the end of the archive"].concat());
            }
        }
    }
    seeds
}
