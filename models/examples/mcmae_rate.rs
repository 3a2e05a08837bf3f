//! Images per second and memory of a training step of MCMAE-B, with the visible cells alone and as published, and of a ViT-B MAE.
//!
//!     cargo run --release -p models --example mcmae_rate [-- [--threads 1] [--batch 8] [--steps 5] [--size 224] [--precision f32]
//!                                                            [--only sparse|dense|vit] [--encoder-alone] [--tiny]]
//!
//! A step is forward (encoder, published decoder, pixel loss) and backward, a quarter of the patches visible; the optimizer is not
//! part of it. The three take turns, and the median of the steps counts, so that a machine that is slow for a while is slow for all
//! of them. `--encoder-alone` leaves out decoder and pixel loss, as in a recipe that only mimics: the three have the decoder in common,
//! and it is most of what is left to them. `--only` runs one of them, and says how much memory the process took at most; without it, a process is started for each
//! of them to find that out. `--precision` leaves out the other one. `--tiny` has networks that only show that the program works.

#![allow(clippy::print_stdout, reason = "an example shows its result")]
#![allow(clippy::unwrap_used, reason = "an example stops at the first error")]

use std::process::Command;
use std::time::Instant;

use models::blocks::Pass;
use models::decoder::DecoderConfig;
use models::encoder::{Encoder, EncoderConfig};
use models::mae::{Mae, MaeConfig};
use models::masking::{Masking, len_keep, random_masking};
use models::mcmae::McmaeEncoderConfig;
use models::params::ParamStore;
use models::precision::Precision;
use models::vit::VitConfig;
use tch::{Device, Kind, Tensor};
use tikv_jemallocator::Jemalloc;

/// As the programs have it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const WAYS: [&str; 3] = ["sparse", "dense", "vit"];
const MASK_RATIO: f64 = 0.75;

struct Options {
    threads: usize,
    batch: i64,
    steps: usize,
    size: i64,
    precisions: Vec<Precision>,
    only: Option<String>,
    encoder_alone: bool,
    tiny: bool,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            threads: 1,
            batch: 8,
            steps: 5,
            size: 224,
            precisions: vec![Precision::F32, Precision::Bf16],
            only: None,
            encoder_alone: false,
            tiny: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let flag = match name.as_str() {
                "--tiny" => Some(&mut options.tiny),
                "--encoder-alone" => Some(&mut options.encoder_alone),
                _ => None,
            };
            if let Some(flag) = flag {
                *flag = true;
                continue;
            }
            let value = arguments.next().expect("an option has a value");
            match name.as_str() {
                "--threads" => options.threads = value.parse().unwrap(),
                "--batch" => options.batch = value.parse().unwrap(),
                "--steps" => options.steps = value.parse().unwrap(),
                "--size" => options.size = value.parse().unwrap(),
                "--precision" => options.precisions = vec![value.parse().unwrap()],
                "--only" if WAYS.contains(&value.as_str()) => options.only = Some(value),
                _ => panic!("{name} {value}: see the head of this file"),
            }
        }
        assert!(options.steps > 0 && options.batch > 0 && options.threads > 0);
        options
    }
}

struct Network {
    way: &'static str,
    store: ParamStore,
    mae: Mae,
    encoder_alone: bool,
}

impl Network {
    fn new(way: &'static str, options: &Options) -> Self {
        let mut decoder = DecoderConfig::PUBLISHED;
        let img_size = [options.size; 2];
        let mut vit = VitConfig { img_size, ..VitConfig::BASE_PATCH16 };
        let mut mcmae = McmaeEncoderConfig { img_size, ..McmaeEncoderConfig::BASE };
        if options.tiny {
            (decoder.embed_dim, decoder.depth, decoder.num_heads) = (32, 1, 2);
            (vit.embed_dim, vit.depth, vit.num_heads, vit.mlp_dim) = (48, 2, 2, 192);
            (mcmae.embed_dims, mcmae.depths, mcmae.num_heads) = ([16, 24, 48], [1, 1, 2], 2);
        }
        let encoder = match way {
            "vit" => EncoderConfig::Vit(vit),
            _ => EncoderConfig::Mcmae(mcmae),
        };
        let config = MaeConfig { encoder, decoder, norm_pix_loss: true };
        let store = ParamStore::new(Device::Cpu, 0);
        let mae = Mae::new(&store.root(), &config).unwrap();
        Self { way, store, mae, encoder_alone: options.encoder_alone }
    }

    /// Seconds of one step.
    fn step(&self, imgs: &Tensor, masking: &Masking, precision: Precision) -> f64 {
        for mut param in self.store.trainable().into_values() {
            param.zero_grad();
        }
        let start = Instant::now();
        let loss = {
            let _autocast = precision.guard(Device::Cpu);
            let latent = match (self.mae.encoder(), self.way) {
                (Encoder::Mcmae(encoder), "dense") => encoder.forward_encoder_dense(imgs, masking, &Pass::default()),
                _ => self.mae.forward_encoder(imgs, masking),
            };
            if self.encoder_alone {
                latent.square().mean(None)
            } else {
                let pred = self.mae.forward_decoder(&latent, &masking.ids_restore);
                self.mae.forward_loss(imgs, &pred, &masking.mask)
            }
        };
        loss.backward();
        start.elapsed().as_secs_f64()
    }

    /// GFLOP of a forward pass of the encoder.
    fn encoder_gflop(&self) -> f64 {
        let config = &self.mae.config().encoder;
        let num_patches = config.num_patches();
        let keep = len_keep(num_patches, MASK_RATIO);
        let flop = match config {
            EncoderConfig::Mcmae(config) => {
                let computed = if self.way == "dense" { num_patches } else { keep };
                let parts = config.flop_per_image(computed, keep);
                parts.iter().map(|(_, flop)| flop).sum()
            }
            EncoderConfig::Vit(config) => config.flops(keep),
        };
        flop / 1e9
    }
}

fn main() {
    let options = Options::read();
    torch_ext::keep_freed_memory();
    torch_ext::set_num_threads(options.threads).unwrap();
    let ways = WAYS.into_iter();
    let ways = ways.filter(|way| options.only.as_deref().is_none_or(|only| only == *way));
    let networks: Vec<Network> = ways.map(|way| Network::new(way, &options)).collect();

    let (n, side) = (options.batch, options.size);
    let imgs = Tensor::randn([n, 3, side, side], (Kind::Float, Device::Cpu));
    let num_patches = networks[0].mae.config().num_patches();
    let noise = Tensor::rand([n, num_patches], (Kind::Float, Device::Cpu));
    let masking = random_masking(&noise, len_keep(num_patches, MASK_RATIO));

    println!("batch {n} of {side} pixels, {} thread(s), median of {} steps", options.threads, options.steps);
    println!("precision  network  encoder GFLOP   img/s  of vit   peak GB");
    for &precision in &options.precisions {
        let mut seconds = vec![Vec::new(); networks.len()];
        for round in 0..=options.steps {
            for (network, seconds) in networks.iter().zip(&mut seconds) {
                let step = network.step(&imgs, &masking, precision);
                // The first round allocates.
                if round > 0 {
                    seconds.push(step);
                }
            }
        }
        let rates: Vec<f64> = seconds.into_iter().map(|seconds| n as f64 / median(seconds)).collect();
        for (network, rate) in networks.iter().zip(&rates) {
            let beside = match (networks.len(), rates.last()) {
                (3, Some(vit)) => format!("{:6.2}", rate / vit),
                _ => "     -".to_owned(),
            };
            println!(
                "{:9}  {:7}  {:13.1}  {rate:6.2}  {beside}  {:8.2}",
                precision.name(),
                network.way,
                network.encoder_gflop(),
                peak(network.way, precision, &options) as f64 / 1e9
            );
        }
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The most memory a process took that ran `way` alone, in bytes: this one, or one that is started for it.
fn peak(way: &str, precision: Precision, options: &Options) -> u64 {
    if options.only.is_some() {
        return torch_ext::peak_rss().expect("the system says what a process takes");
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone.args(["--only", way, "--precision", precision.name(), "--steps", "1"]);
    for (name, value) in [("--threads", options.threads as i64), ("--batch", options.batch), ("--size", options.size)] {
        alone.args([name, &value.to_string()]);
    }
    if options.tiny {
        alone.arg("--tiny");
    }
    if options.encoder_alone {
        alone.arg("--encoder-alone");
    }
    let output = alone.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text.lines().last().and_then(|line| line.split_whitespace().last());
    let gigabytes: f64 = figure
        .and_then(|figure| figure.parse().ok())
        .unwrap_or_else(|| panic!("{way} alone: {}", String::from_utf8_lossy(&output.stderr)));
    (gigabytes * 1e9) as u64
}
