//! The text that names an architecture in a cache's record, written and read.

use super::config::{Pooling, Positions, VitConfig};

impl VitConfig {
    /// Tells this architecture from every other one: `family-vit-w{width}-d{depth}-h{heads}-m{MLP width}-p{patch size}`, then
    /// `-ls` for LayerScale, `-glu` for a gated MLP, `-r4` for 4 registers, `-rope100` for rotary positions of that base, `-avg` for a mean of patches.
    pub fn arch(&self) -> String {
        let family = match (self.pooling, self.norm_pre) {
            (Pooling::Attention, _) => "siglip-vit",
            (Pooling::Cls | Pooling::Mean, true) => "clip-vit",
            (Pooling::Cls | Pooling::Mean, false) => "vit",
        };
        let mut arch = format!(
            "{family}-w{}-d{}-h{}-m{}-p{}",
            self.embed_dim, self.depth, self.num_heads, self.mlp_dim, self.patch_size
        );
        if self.layer_scale {
            arch.push_str("-ls");
        }
        if self.gated_mlp {
            arch.push_str("-glu");
        }
        if self.registers > 0 {
            arch.push_str(&format!("-r{}", self.registers));
        }
        if let Positions::Rotary { base } = self.positions {
            arch.push_str(&format!("-rope{base}"));
        }
        if self.pooling == Pooling::Mean {
            arch.push_str("-avg");
        }
        arch
    }

    /// The sizes that [`VitConfig::arch`] wrote, with everything it does not say as in MAE's ViT with learned positions. `None`
    /// for another text.
    pub fn from_arch(arch: &str) -> Option<VitConfig> {
        let (family, rest) = arch.split_once("vit-")?;
        let mut parts = rest.split('-');
        let mut size = |letter: char| -> Option<i64> {
            let size = parts.next()?.strip_prefix(letter)?.parse::<u32>().ok()?;
            (size > 0).then_some(i64::from(size))
        };
        let (embed_dim, depth, num_heads) = (size('w')?, size('d')?, size('h')?);
        let (mlp_dim, patch_size) = (size('m')?, size('p')?);
        let mut config =
            VitConfig { mlp_dim, positions: Positions::Learned, ..Self::mae(patch_size, embed_dim, depth, num_heads) };
        match family {
            "siglip-" => config.pooling = Pooling::Attention,
            "clip-" => (config.norm_pre, config.patch_bias) = (true, false),
            "" => {}
            _ => return None,
        }
        for part in parts {
            match part {
                "ls" => config.layer_scale = true,
                "glu" => config.gated_mlp = true,
                "avg" => config.pooling = Pooling::Mean,
                _ => match part.strip_prefix("rope") {
                    Some(base) => config.positions = Positions::Rotary { base: base.parse().ok()? },
                    None => config.registers = part.strip_prefix('r')?.parse::<u32>().ok()?.into(),
                },
            }
        }
        Some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let learned = |config| VitConfig { positions: Positions::Learned, ..config };
        let base = learned(VitConfig::BASE_PATCH16);
        let rotary = Positions::Rotary { base: 100.0 };
        for config in [
            base.clone(),
            VitConfig { norm_pre: true, patch_bias: false, mlp_dim: 3000, ..base.clone() },
            VitConfig { pooling: Pooling::Attention, ..base.clone() },
            VitConfig { pooling: Pooling::Mean, ..base.clone() },
            VitConfig { layer_scale: true, gated_mlp: true, registers: 4, ..learned(VitConfig::HUGE_PATCH14) },
            VitConfig { layer_scale: true, registers: 4, positions: rotary, ..base },
        ] {
            assert_eq!(VitConfig::from_arch(&config.arch()), Some(config));
        }
        for other in
            ["", "vit", "resnet-w1", "vit-w768-d12-h12", "vit-w768-d12-h12-m3072-p0", "vit-w768-d12-h12-m3072-p16-x"]
        {
            assert_eq!(VitConfig::from_arch(other), None, "{other}");
        }
    }
}
