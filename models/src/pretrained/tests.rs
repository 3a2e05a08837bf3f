#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::collections::BTreeMap;
use std::fs;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::encoder::Encoder;
use crate::init::Init;
use crate::params::ParamStore;
use crate::vit::{Positions, VitConfig};
use crate::weights;

fn folder(tensors: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), weights::to_bytes(tensors, Some(("recipe", "r"))).unwrap())
        .unwrap();
    folder
}

/// A file of MAE's ViT is a student's and a tower's: the same function by either name.
#[test]
fn a_vit_is_a_student_or_a_tower_as_the_caller_wants() {
    let config = EncoderConfig::Vit(VitConfig { img_size: [32, 32], ..VitConfig::mae(8, 192, 2, 3) });
    let store = ParamStore::new(Device::Cpu, 3);
    let encoder = Encoder::new(&store.root(), &config).unwrap();
    let folder = folder(&store.tensors());
    let imgs = Init::Normal { std: 1.0 }.tensor(&[2, 3, 32, 32], 5, "imgs");
    let expected = encoder.forward_features(&imgs, false);
    for (wanted, positions) in [
        (Wanted::Student, Positions::SinCos),
        (Wanted::StudentFirst, Positions::SinCos),
        (Wanted::Tower, Positions::Learned),
        (Wanted::TowerFirst, Positions::Learned),
    ] {
        let found = Pretrained::open(folder.path(), wanted).unwrap();
        assert_eq!(found.path, folder.path().join("model.safetensors"));
        assert_eq!(found.metadata["recipe"], "r");
        let EncoderConfig::Vit(vit) = found.encoder_config().unwrap() else { panic!("{wanted:?}: not a ViT") };
        assert_eq!(vit.positions, positions, "{wanted:?}");
        let opened = ParamStore::new(Device::Cpu, 0);
        let network = Encoder::new(&opened.root(), &EncoderConfig::Vit(vit)).unwrap();
        opened.load("the file", &found.encoder_tensors()).unwrap();
        let difference = (network.forward_features(&imgs, false) - &expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{wanted:?}: {difference:e}");
    }
}

#[test]
fn a_file_of_neither_says_why_it_is_neither() {
    let other = BTreeMap::from([("a.weight".to_owned(), Tensor::ones([2, 2], (Kind::Float, Device::Cpu)))]);
    let folder = folder(&other);
    for wanted in [Wanted::StudentFirst, Wanted::TowerFirst] {
        let error = Pretrained::open(folder.path(), wanted).unwrap_err();
        assert!(matches!(error, Error::NeitherStudentNorTower { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("no student in a known layout") && said.contains("no vision tower"), "{said}");
    }
    assert!(matches!(Pretrained::open(folder.path(), Wanted::Student), Err(Error::NoStudent { .. })));
    assert!(matches!(Pretrained::open(folder.path(), Wanted::Tower), Err(Error::UnknownLayout { .. })));
}

#[test]
fn a_file_is_compared_with_what_a_record_says() {
    let tensors = BTreeMap::from([("a".to_owned(), Tensor::ones([2], (Kind::Float, Device::Cpu)))]);
    let folder = folder(&tensors);
    let weights = Weights::read(folder.path()).unwrap();
    weights.require_sha256(weights.sha256(), "state.json").unwrap();
    let error = weights.require_sha256("00", "state.json").unwrap_err().to_string();
    assert!(error.contains("is damaged (SHA-256") && error.contains("state.json says 00"), "{error}");
}
