//! The order of the layers, and the names and sizes that follow from it.

use super::Config;

/// One layer over pixels.
pub(super) struct Layer {
    /// Its name, as in the original files: `input_blocks.4.1`.
    pub(super) name: String,
    /// The level of its result: pixels of level `l` are half as many both ways as those of level `l - 1`.
    pub(super) level: usize,
    pub(super) kind: Kind,
    /// Whether its result is joined to a layer on the way up: last kept, first used.
    pub(super) kept: bool,
}

impl Layer {
    /// Whether it is on the way up.
    pub(super) fn is_up(&self) -> bool {
        self.name.starts_with("output_blocks.")
    }

    /// Channels of its result.
    pub(super) fn channels(&self) -> usize {
        match self.kind {
            Kind::Resnet { outputs, .. } => outputs,
            Kind::Transformer { channels, .. } | Kind::Downsample { channels } | Kind::Upsample { channels } => {
                channels
            }
        }
    }
}

/// What a layer does.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A residual block from `inputs` to `outputs` channels; the inputs are joined to what was `kept` if `joins`.
    Resnet { inputs: usize, outputs: usize, joins: bool },
    /// A transformer of `depth` blocks, over tokens as wide as there are channels.
    Transformer { channels: usize, heads: usize, depth: usize },
    /// Every other pixel.
    Downsample { channels: usize },
    /// Every pixel doubled.
    Upsample { channels: usize },
}

/// All layers between the first convolution, whose result is kept too, and the last.
pub(super) fn layers(config: &Config) -> Vec<Layer> {
    let mut layout = Layout { config, layers: Vec::new(), channels: config.time_width(), kept: Vec::new() };
    layout.kept.push(layout.channels);
    layout.down();
    layout.middle();
    layout.up();
    layout.layers
}

struct Layout<'a> {
    config: &'a Config,
    layers: Vec<Layer>,
    /// Channels of the last layer.
    channels: usize,
    /// Channels of what is kept and not used yet.
    kept: Vec<usize>,
}

impl Layout<'_> {
    fn push(&mut self, name: String, level: usize, kind: Kind) {
        self.layers.push(Layer { name, level, kind, kept: false });
    }

    fn transformer(&mut self, name: String, level: usize, depth: usize) {
        let heads = self.config.attention_head_dim.at(level);
        self.push(name, level, Kind::Transformer { channels: self.channels, heads, depth });
    }

    /// A residual block that gives `outputs` channels, of what was there and `joined` channels more.
    fn resnet(&mut self, name: String, level: usize, joined: Option<usize>, outputs: usize) {
        let inputs = self.channels + joined.unwrap_or(0);
        self.push(name, level, Kind::Resnet { inputs, outputs, joins: joined.is_some() });
        self.channels = outputs;
    }

    /// The last layer's result is kept.
    fn keep(&mut self) {
        if let Some(last) = self.layers.last_mut() {
            last.kept = true;
        }
        self.kept.push(self.channels);
    }

    fn down(&mut self) {
        let mut n = 0;
        for (level, &outputs) in self.config.block_out_channels.iter().enumerate() {
            for block in 0..self.config.layers(level) {
                n += 1;
                self.resnet(format!("input_blocks.{n}.0"), level, None, outputs);
                if self.config.attends_down(level) {
                    self.transformer(format!("input_blocks.{n}.1"), level, self.config.depth_down(level, block));
                }
                self.keep();
            }
            if level + 1 < self.config.levels() {
                n += 1;
                self.push(format!("input_blocks.{n}.0"), level + 1, Kind::Downsample { channels: outputs });
                self.keep();
            }
        }
    }

    fn middle(&mut self) {
        if self.config.mid_block_type.is_none() {
            return;
        }
        let level = self.config.levels() - 1;
        self.resnet("middle_block.0".into(), level, None, self.channels);
        if let Some(depth) = self.config.depth_of_middle() {
            self.transformer("middle_block.1".into(), level, depth);
            self.resnet("middle_block.2".into(), level, None, self.channels);
        }
    }

    fn up(&mut self) {
        let mut n = 0;
        for (level, &outputs) in self.config.block_out_channels.iter().enumerate().rev() {
            for block in 0..=self.config.layers(level) {
                let joined = self.kept.pop();
                self.resnet(format!("output_blocks.{n}.0"), level, joined, outputs);
                let attends = self.config.attends_up(level);
                if attends {
                    self.transformer(format!("output_blocks.{n}.1"), level, self.config.depth_up(level, block));
                }
                if block == self.config.layers(level) && level > 0 {
                    let place = if attends { 2 } else { 1 };
                    self.push(format!("output_blocks.{n}.{place}"), level - 1, Kind::Upsample { channels: outputs });
                }
                n += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &Config) -> Vec<String> {
        layers(config).into_iter().map(|layer| layer.name).collect()
    }

    #[test]
    fn upsampling_stands_behind_attention() {
        let sd1 = names(&Config::sd1());
        for name in ["output_blocks.2.1", "output_blocks.5.2", "output_blocks.8.2", "input_blocks.9.0"] {
            assert!(sd1.iter().any(|known| known == name), "{name}");
        }
        let sdxl = names(&Config::sdxl());
        assert!(sdxl.iter().any(|name| name == "output_blocks.2.2"));
        assert_eq!(sdxl.last().map(String::as_str), Some("output_blocks.8.0"));
    }

    #[test]
    fn what_is_kept_is_used_once() {
        for config in [Config::sd1(), Config::sdxl()] {
            let layers = layers(&config);
            let kept = 1 + layers.iter().filter(|layer| layer.kept).count();
            let joined = layers.iter().filter(|layer| matches!(layer.kind, Kind::Resnet { joins: true, .. })).count();
            assert_eq!(kept, joined);
        }
    }
}
