//! The panic hook is the process's: what the program sets keeps quiet about a pass that runs out of memory, and about nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Arc, Mutex};

use models::mr_mae::Losses;
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamWConfig, FusedAdamW, keep_quiet_about_memory};
use trainer::data::batch::MimicBatch;
use trainer::micro_batch::MicroBatches;

/// More than there are addresses for.
fn run_out() -> Tensor {
    Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu))
}

/// One step of four images.
fn train(pass: impl Fn(&MimicBatch) -> Tensor) -> MicroBatches {
    let batch = MimicBatch {
        samples: (0..4).map(|id| (id, 0)).collect(),
        imgs: Tensor::arange(4, (Kind::Float, Device::Cpu)),
        noise: Tensor::zeros([4, 1], (Kind::Double, Device::Cpu)),
        drop_path: None,
        teachers: vec![],
    };
    let mut micro = MicroBatches::new(4, 1, 1).unwrap();
    let mut optim = FusedAdamW::new(AdamWConfig::default());
    let losses = |part: &MimicBatch, _: usize| {
        Ok(Losses { total: pass(part), rec: None, mimic: Default::default(), mimic_cls: Default::default() })
    };
    micro.accumulate(&mut optim, &[batch], &mut vec![], &losses).unwrap();
    micro
}

#[test]
fn only_a_pass_that_runs_out_of_memory_is_kept_quiet_about() {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let to = Arc::clone(&said);
    set_hook(Box::new(move |info| to.lock().unwrap().push(info.to_string())));
    keep_quiet_about_memory();
    let news = || std::mem::take(&mut *said.lock().unwrap());

    let micro = train(|part| match part.samples.len() {
        0..=2 => part.imgs.mean(Kind::Float),
        _ => run_out(),
    });
    assert_eq!(micro.parts(), 2);
    assert_eq!(news(), [""; 0]);

    assert!(catch_unwind(AssertUnwindSafe(|| train(|_| panic!("a bug")))).is_err());
    let found = news();
    assert!(found.len() == 1 && found[0].contains("a bug"), "{found:?}");

    // Outside a pass it is a panic like any other.
    assert!(catch_unwind(run_out).is_err());
    let found = news();
    assert!(found.len() == 1 && found[0].contains("DefaultCPUAllocator"), "{found:?}");
}
