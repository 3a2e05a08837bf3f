//! The convolutions of the masked stages.
//!
//! All but the depthwise ones have a stride equal to their side: each output is a product of one weight matrix with the cells
//! under it, and is computed as that, over whichever cells are asked for.

use tch::{Device, Kind, Tensor};
use torch_ext::{Autocast, linear};

use crate::init::Init;
use crate::params::Scope;

/// Weight and bias as PyTorch's convolutions start: both uniform in ±1/√fan_in.
pub(super) fn conv_params(scope: &Scope, shape: [i64; 4], weight: Option<Init>) -> [Tensor; 2] {
    let fan_in = shape[1..].iter().product::<i64>();
    let default = Init::Uniform { bound: (fan_in as f64).sqrt().recip() };
    [scope.param("weight", &shape, weight.unwrap_or(default)), scope.param("bias", &shape[..1], default)]
}

/// A convolution of `side × side` cells with stride `side`.
#[derive(Debug)]
pub(super) struct Conv {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl Conv {
    /// Parameters `weight [out_dim, in_dim, side, side]` and `bias [out_dim]`, as PyTorch starts them.
    pub(super) fn new(scope: &Scope, in_dim: i64, out_dim: i64, side: i64) -> Self {
        let [weight, bias] = conv_params(scope, [out_dim, in_dim, side, side], None);
        Self { weight, bias }
    }

    /// The same, the weight xavier-uniform as that of a linear layer.
    pub(super) fn xavier(scope: &Scope, in_dim: i64, out_dim: i64, side: i64) -> Self {
        let shape = [out_dim, in_dim, side, side];
        let [weight, bias] = conv_params(scope, shape, Some(Init::XavierUniform));
        Self { weight, bias }
    }

    /// Another handle on the same parameters.
    pub(super) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    /// Projects squares of cells, within a square row, column, channel: `[.., side²·in_dim] → [.., out_dim]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.permute([0, 2, 3, 1]).flatten(1, -1);
        linear(x, &weight, Some(&self.bias))
    }

    /// Projects pixels, within a square channel, row, column: `[.., in_dim·side²] → [.., out_dim]`.
    pub(super) fn forward_pixels(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight.flatten(1, -1), Some(&self.bias))
    }

    /// As the convolution it is: `[N, in_dim, h, w] → [N, out_dim, h / side, w / side]`.
    pub(super) fn forward_map(&self, x: &Tensor) -> Tensor {
        let side = self.weight.size()[2];
        x.conv2d(&self.weight, Some(&self.bias), side, 0, 1, 1)
    }
}

/// How far a depthwise convolution sees in each direction.
pub(super) const REACH: i64 = DepthwiseConv::SIDE / 2;

/// A 5 × 5 convolution of each channel by itself.
#[derive(Debug)]
pub(super) struct DepthwiseConv {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
}

impl DepthwiseConv {
    const SIDE: i64 = 5;

    /// Parameters `weight [dim, 1, 5, 5]` and `bias [dim]`, as PyTorch starts them.
    pub(super) fn new(scope: &Scope, dim: i64) -> Self {
        let [weight, bias] = conv_params(scope, [dim, 1, Self::SIDE, Self::SIDE], None);
        Self { weight, bias }
    }

    /// Another handle on the same parameters.
    pub(super) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    /// Its input in the format in which it computes, before that is spread out.
    ///
    /// On a CPU that is f32 also under bf16 autocast: the bf16 kernel for the weight's gradient (libtorch 2.11) takes 2.6 times as
    /// long at the first stage and 3.6 times at the second, and the other kernels gain less than it loses.
    pub(super) fn prepare(&self, x: &Tensor) -> Tensor {
        match x.device() {
            Device::Cpu => x.to_kind(Kind::Float),
            _ => x.shallow_clone(),
        }
    }

    /// `[N, dim, h, w]`, prepared → `[N, dim, h', w']`, f32 on a CPU.
    pub(super) fn forward(&self, x: &Tensor, padding: i64) -> Tensor {
        let _f32 = (x.device() == Device::Cpu).then(|| Autocast::pause(Device::Cpu));
        let groups = self.weight.size()[0];
        x.conv2d(&self.weight, Some(&self.bias), 1, padding, 1, groups)
    }

    /// As published: `[N, dim, h, w] → [N, dim, h, w]`.
    pub(super) fn forward_map(&self, x: &Tensor) -> Tensor {
        let groups = self.weight.size()[0];
        x.conv2d(&self.weight, Some(&self.bias), 1, REACH, 1, groups)
    }
}
