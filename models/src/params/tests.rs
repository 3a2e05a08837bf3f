use super::*;

const NORMAL: Init = Init::Normal { std: 1.0 };

fn two_layers(store: &ParamStore) {
    let root = store.root();
    let _ = root.sub("blocks").sub(3).param("weight", &[2, 3], NORMAL);
    let _ = root.param("bias", &[2], Init::Zeros);
    let _ = root.buffer("positions", &Tensor::ones([2], (Kind::Double, Device::Cpu)));
}

fn copies(store: &ParamStore) -> BTreeMap<String, Tensor> {
    store.tensors().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect()
}

#[test]
fn names_are_full_ordered_and_of_two_roles() {
    let store = ParamStore::new(Device::Cpu, 0);
    two_layers(&store);
    assert!(store.tensors().into_keys().eq(["bias", "blocks.3.weight", "positions"]));
    assert!(store.trainable().into_keys().eq(["bias", "blocks.3.weight"]));
    assert_eq!(store.num_trainable(), 8);
    assert!(store.get("blocks.3.weight").unwrap().requires_grad());
    let positions = store.get("positions").unwrap();
    assert!(!positions.requires_grad());
    assert_eq!(positions.kind(), Kind::Float);
    assert!(store.get("blocks.3").is_none());
}

#[test]
fn a_start_depends_on_seed_and_name_alone() {
    let start = |seed, before: &[&str], name: &str| {
        let store = ParamStore::new(Device::Cpu, seed);
        for other in before {
            let _ = store.root().param(other, &[5], NORMAL);
        }
        store.root().param(name, &[4], NORMAL).detach()
    };
    let weight = start(1, &[], "weight");
    assert_eq!(weight, start(1, &["first", "second"], "weight"));
    assert_ne!(weight, start(2, &[], "weight"));
    assert_ne!(weight, start(1, &[], "other"));
}

#[test]
#[should_panic(expected = "two tensors are called blocks.0.weight")]
fn a_name_is_given_once() {
    let store = ParamStore::new(Device::Cpu, 0);
    let _ = store.root().sub("blocks").sub(0).param("weight", &[1], NORMAL);
    let _ = store.root().sub("blocks.0").param("weight", &[1], NORMAL);
}

#[test]
fn a_frozen_store_trains_nothing_and_draws_nothing() {
    let store = ParamStore::frozen(Device::Cpu);
    two_layers(&store);
    assert!(store.trainable().is_empty());
    assert_eq!(store.get("blocks.3.weight").unwrap(), Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
    assert_eq!(store.get("positions").unwrap(), Tensor::ones([2], (Kind::Float, Device::Cpu)));
}

#[test]
fn loading_reaches_the_layers_and_keeps_f32() {
    let store = ParamStore::new(Device::Cpu, 0);
    let weight = store.root().param("weight", &[2], NORMAL);
    for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
        let values = Tensor::from_slice(&[0.5f32, -3.0]);
        store.load("memory", &BTreeMap::from([("weight".to_owned(), values.to_kind(kind))])).unwrap();
        assert_eq!(weight.detach(), values, "{kind:?}");
        assert!(weight.requires_grad());
    }
}

#[test]
fn every_difference_is_listed_and_nothing_is_loaded() {
    let store = ParamStore::new(Device::Cpu, 0);
    two_layers(&store);
    let _ = store.root().param("mask_token", &[1], NORMAL);
    let before = copies(&store);
    let options = (Kind::Float, Device::Cpu);
    let given = BTreeMap::from([
        ("bias".to_owned(), Tensor::zeros([3], options)),
        ("head.weight".to_owned(), Tensor::zeros([7, 2], options)),
        ("mask_token".to_owned(), Tensor::zeros([1], (Kind::Int64, Device::Cpu))),
        ("positions".to_owned(), Tensor::zeros([2], options)),
    ]);
    let refused = store.load("a.safetensors", &given);
    let Err(Error::WeightsMismatch { origin, mismatch }) = refused else { panic!("{refused:?}") };
    assert_eq!(origin, "a.safetensors");
    let expected = Mismatch {
        missing: vec![("blocks.3.weight".to_owned(), vec![2, 3])],
        unexpected: vec![("head.weight".to_owned(), vec![7, 2])],
        misshaped: vec![Misshaped { name: "bias".to_owned(), found: vec![3], expected: vec![2] }],
        not_float: vec![("mask_token".to_owned(), Kind::Int64)],
    };
    assert_eq!(mismatch, expected);
    assert_eq!(copies(&store), before);
}

#[test]
fn moving_takes_the_layers_along() {
    let store = ParamStore::new(Device::Cpu, 0);
    let weight = store.root().param("weight", &[2], NORMAL);
    let before = weight.detach().copy();
    let device = torch_ext::resolve_device("auto").unwrap();
    store.to(device);
    assert_eq!((weight.device(), store.device()), (device, device));
    assert!(weight.requires_grad() && weight.is_leaf());
    assert_eq!(weight.detach().to_device(Device::Cpu), before);
}

/// A layer's handle follows: what was a buffer gets a gradient.
#[test]
fn a_buffer_can_be_trained_later_and_parts_can_be_left_out() {
    let store = ParamStore::new(Device::Cpu, 0);
    let value = Tensor::ones([3], (Kind::Float, Device::Cpu));
    let handle = store.root().buffer("pos_embed", &value);
    let _norm = store.root().sub("norm").param("weight", &[3], Init::Ones);
    let _fc_norm = store.root().sub("fc_norm").param("weight", &[3], Init::Ones);
    assert_eq!(store.trainable().len(), 2);
    store.train("pos_embed");
    (&handle * 2.0).sum(Kind::Float).backward();
    let grad = store.trainable()["pos_embed"].grad();
    assert_eq!(Vec::<f32>::try_from(grad).unwrap(), [2.0; 3]);
    store.remove("norm.");
    assert_eq!(store.tensors().into_keys().collect::<Vec<_>>(), ["fc_norm.weight", "pos_embed"]);

    let frozen = ParamStore::frozen(Device::Cpu);
    let _ = frozen.root().buffer("pos_embed", &value);
    frozen.train("pos_embed");
    assert!(frozen.trainable().is_empty());
}
