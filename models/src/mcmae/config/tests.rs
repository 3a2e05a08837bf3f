use tch::Device;

use super::*;
use crate::mcmae::McmaeEncoder;
use crate::params::ParamStore;

const SMALL: McmaeEncoderConfig = McmaeEncoderConfig {
    img_size: [32, 48],
    embed_dims: [8, 12, 16],
    depths: [1, 2, 2],
    num_heads: 2,
    mlp_ratios: [2, 3, 2],
    cls_token: false,
    fusion: true,
};

#[test]
fn configurations_of_no_network_are_refused_by_field() {
    let check = |field: &str, config: McmaeEncoderConfig| {
        let refused = McmaeEncoder::new(&ParamStore::frozen(Device::Cpu).root(), &config);
        let Err(Error::Config { field: found, .. }) = refused else { panic!("{field}: {refused:?}") };
        assert_eq!(found, field);
    };
    let with = |change: fn(&mut McmaeEncoderConfig)| {
        let mut config = SMALL;
        change(&mut config);
        config
    };
    check("img_size", with(|c| c.img_size = [32, 40]));
    check("img_size", with(|c| c.img_size = [0, 16]));
    check("img_size", with(|c| c.img_size = [-16, 16]));
    check("embed_dims", with(|c| c.embed_dims = [8, 0, 16]));
    check("embed_dims[2]", with(|c| c.embed_dims = [8, 8, 18]));
    check("embed_dims[2]", with(|c| c.num_heads = 3));
    check("num_heads", with(|c| c.num_heads = 0));
    check("depths", with(|c| c.depths = [1, 1, 0]));
    check("mlp_ratios", with(|c| c.mlp_ratios = [0, 1, 1]));
}

/// The table in the documentation of [`crate::mcmae`], and the network's own weights: a linear layer or convolution multiplies each of its
/// weights once for each place it is applied to.
#[test]
fn arithmetic_is_that_of_the_weights() {
    let config = McmaeEncoderConfig::BASE;
    let store = ParamStore::frozen(Device::Cpu);
    McmaeEncoder::new(&store.root(), &config).unwrap();
    for computed in [49, 196] {
        let parts = config.flop_per_image(computed, 49);
        let mut total = 0.0;
        for (name, flop) in &parts {
            let places = match *name {
                "patch_embed1" | "blocks1" => 16 * computed,
                "patch_embed2" | "blocks2" => 4 * computed,
                "blocks3" => 49,
                _ => computed,
            };
            let tensors = store.tensors();
            let weights: usize = tensors
                .iter()
                .filter(|(param, weight)| param.starts_with(name) && param.ends_with("weight") && weight.dim() > 1)
                .map(|(_, weight)| weight.numel())
                .sum();
            let attention = if *name == "blocks3" { 11 * 2 * 49 * 49 * 768 } else { 0 };
            let expected = 2.0 * (places * weights as i64 + attention) as f64;
            assert_eq!(*flop, expected, "{name}");
            total += flop;
        }
        let documented = if computed == 49 { 11.7 } else { 23.7 };
        assert_eq!((total / 1e8).round() / 10.0, documented, "{parts:?}");
    }
}

#[test]
fn published_sizes_are_networks() {
    for config in
        [McmaeEncoderConfig::SMALL, McmaeEncoderConfig::BASE, McmaeEncoderConfig::LARGE, McmaeEncoderConfig::HUGE]
    {
        config.validate().unwrap();
        assert_eq!(config.num_patches(), 196);
        assert_eq!(config.grid(), [14, 14]);
    }
}
