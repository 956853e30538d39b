//! ControlNets as options give them: each `--control` begins one, and what follows it belongs to it.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use pinhole::image::Thresholds;
use pinhole::pipeline::{Control, Preprocess};
use pinhole::{Error, Result};

use super::pictures::open_picture;
use super::printer::Printer;

/// The options as they stand on the command line.
#[derive(clap::Args)]
struct Options {
    /// A ControlNet that runs beside FLUX.1, Stable Diffusion, Z-Image or Qwen-Image: a safetensors or GGUF file, or a folder of diffusers. Each --control begins one, and the
    /// options for it stand behind it: --control canny.gguf --control-image edges.png --control-scale 0.6
    #[arg(long = "control", value_name = "FILE|DIR")]
    controls: Vec<PathBuf>,
    /// The picture that the ControlNet before it follows: edges, a map of depth, a pose; or that a model follows that takes one beside
    /// the latents: edges for FLUX.1 Canny, a map of depth for FLUX.1 Depth
    #[arg(long = "control-image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// How strongly the ControlNet before it works [default: 1]
    #[arg(long = "control-scale", value_name = "S")]
    scales: Vec<f32>,
    /// From which part of the steps on it works, 0 to 1 [default: 0]
    #[arg(long = "control-start", value_name = "A")]
    starts: Vec<f64>,
    /// Up to which part of the steps it works, 0 to 1 [default: 1]
    #[arg(long = "control-end", value_name = "B")]
    ends: Vec<f64>,
    /// What kind of picture it follows, for a union ControlNet, or its number. Of FLUX.1: canny, tile, depth, blur, pose, gray, lq. Of
    /// Stable Diffusion XL: openpose, depth, scribble, canny, normal, segment, tile, repaint
    #[arg(long = "control-mode", value_name = "NAME|N")]
    modes: Vec<String>,
    /// What is made of the picture first: canny is its edges, for what follows edges; inpaint is what --mask leaves of it, for
    /// inpainting ControlNets of Stable Diffusion [default: none]
    #[arg(long = "control-preprocess", value_name = "HOW", value_parser = PossibleValuesParser::new(Preprocess::NAMES))]
    preprocesses: Vec<String>,
    /// For canny: an edge has a gradient above HIGH, and goes on as long as that is above LOW [default: 100,200]
    #[arg(long = "canny-thresholds", value_name = "LOW,HIGH", value_parser = thresholds, allow_hyphen_values = true)]
    thresholds: Vec<Thresholds>,
}

/// A value of one of these options.
enum Given {
    Net(PathBuf),
    Image(PathBuf),
    Scale(f32),
    Start(f64),
    End(f64),
    Mode(String),
    Preprocess(String),
    Thresholds(Thresholds),
}

/// What is made of a picture first, as options say it.
#[derive(Clone, Debug, Default)]
struct Made {
    how: Option<String>,
    thresholds: Option<Thresholds>,
}

impl Made {
    /// # Errors
    /// [`Error::Option`] for thresholds of edges that are not made.
    fn read(&self) -> Result<Preprocess> {
        match (self.how.as_deref(), self.thresholds) {
            (Some("canny"), thresholds) => Ok(Preprocess::Canny(thresholds.unwrap_or_default())),
            (Some("inpaint"), None) => Ok(Preprocess::Inpaint),
            (_, None) => Ok(Preprocess::None),
            (_, Some(Thresholds { low, high })) => {
                let expected = "thresholds of edges that are made";
                let error = Error::option("--canny-thresholds", expected, format!("{low},{high}"));
                Err(error.with_hint("add --control-preprocess canny"))
            }
        }
    }
}

/// What the options ask for.
#[derive(Clone, Debug, Default)]
pub(super) struct ControlArgs {
    /// The ControlNets, in order.
    pub(super) nets: Vec<ControlNet>,
    /// A picture that no ControlNet follows.
    pub(super) image: Option<PathBuf>,
    /// What is made of that.
    made: Made,
    /// An option that stands where it means nothing, what was expected, and what was found.
    wrong: Option<[&'static str; 3]>,
}

/// A ControlNet with what stands behind it.
#[derive(Clone, Debug)]
pub(super) struct ControlNet {
    pub(super) path: PathBuf,
    pub(super) image: Option<PathBuf>,
    scale: Option<f32>,
    start: Option<f64>,
    end: Option<f64>,
    mode: Option<String>,
    made: Made,
}

impl ControlArgs {
    /// What is made of the picture that no ControlNet follows.
    ///
    /// # Errors
    /// [`Error::Option`] for thresholds of edges that are not made.
    pub(super) fn preprocess(&self) -> Result<Preprocess> {
        self.made.read()
    }

    /// The files of the ControlNets.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.nets.iter().map(|net| net.path.clone()).collect()
    }

    /// What each ControlNet follows.
    ///
    /// # Errors
    /// [`Error::Option`] for one without a picture, and for an option at a wrong place; those of reading pictures.
    pub(super) fn read(&self, printer: &Printer) -> Result<Vec<Control>> {
        if let Some([option, expected, found]) = self.wrong {
            return Err(Error::option(option, expected, found));
        }
        self.nets.iter().map(|net| net.read(printer)).collect()
    }

    /// All pictures.
    pub(super) fn images(&self) -> impl Iterator<Item = &PathBuf> {
        self.nets.iter().filter_map(|net| net.image.as_ref()).chain(&self.image)
    }
}

impl ControlArgs {
    /// Takes the next value on the command line.
    fn take(&mut self, given: Given) {
        let (net, image, made) = (self.nets.last_mut(), &mut self.image, &mut self.made);
        let is_behind = net.is_some();
        let (option, is_first) = match (given, net) {
            (Given::Net(path), _) => {
                self.nets.push(ControlNet::new(&path));
                return;
            }
            (Given::Image(path), Some(net)) => ("--control-image", net.image.replace(path).is_none()),
            (Given::Image(path), None) => ("--control-image", image.replace(path).is_none()),
            (Given::Scale(scale), Some(net)) => ("--control-scale", net.scale.replace(scale).is_none()),
            (Given::Start(start), Some(net)) => ("--control-start", net.start.replace(start).is_none()),
            (Given::End(end), Some(net)) => ("--control-end", net.end.replace(end).is_none()),
            (Given::Mode(mode), Some(net)) => ("--control-mode", net.mode.replace(mode).is_none()),
            (Given::Preprocess(how), net) => {
                let made = net.map_or(made, |net| &mut net.made);
                ("--control-preprocess", made.how.replace(how).is_none())
            }
            (Given::Thresholds(thresholds), net) => {
                let made = net.map_or(made, |net| &mut net.made);
                ("--canny-thresholds", made.thresholds.replace(thresholds).is_none())
            }
            (Given::Scale(_), None) => ("--control-scale", false),
            (Given::Start(_), None) => ("--control-start", false),
            (Given::End(_), None) => ("--control-end", false),
            (Given::Mode(_), None) => ("--control-mode", false),
        };
        if !is_first {
            let [expected, found] = match (is_behind, option) {
                (true, _) => ["one behind each --control", "two"],
                (false, "--control-image") => ["a --control before each of several", "none"],
                (false, _) => ["a --control before it", "none"],
            };
            self.wrong = self.wrong.or(Some([option, expected, found]));
        }
    }
}

impl ControlNet {
    fn new(path: &Path) -> ControlNet {
        let (path, made) = (path.to_owned(), Made::default());
        ControlNet { path, image: None, scale: None, start: None, end: None, mode: None, made }
    }

    fn read(&self, printer: &Printer) -> Result<Control> {
        let ControlNet { path, image, scale, start, end, mode, made } = self;
        let Some(image) = image else {
            let expected = format!("a picture for {} to follow", path.display());
            let error = Error::option("--control-image", expected, "none");
            return Err(error.with_hint("give it behind its --control"));
        };
        let control = Control::new(open_picture(image, printer)?);
        Ok(Control {
            scale: scale.unwrap_or(control.scale),
            start: start.unwrap_or(control.start),
            end: end.unwrap_or(control.end),
            mode: mode.clone(),
            preprocess: made.read()?,
            ..control
        })
    }
}

impl FromArgMatches for ControlArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ControlArgs, clap::Error> {
        let Options { controls, images, scales, starts, ends, modes, preprocesses, thresholds } =
            Options::from_arg_matches(matches)?;
        let mut given: Vec<(usize, Given)> = Vec::new();
        let at = |id: &str| matches.indices_of(id).into_iter().flatten();
        given.extend(at("controls").zip(controls.into_iter().map(Given::Net)));
        given.extend(at("images").zip(images.into_iter().map(Given::Image)));
        given.extend(at("scales").zip(scales.into_iter().map(Given::Scale)));
        given.extend(at("starts").zip(starts.into_iter().map(Given::Start)));
        given.extend(at("ends").zip(ends.into_iter().map(Given::End)));
        given.extend(at("modes").zip(modes.into_iter().map(Given::Mode)));
        given.extend(at("preprocesses").zip(preprocesses.into_iter().map(Given::Preprocess)));
        given.extend(at("thresholds").zip(thresholds.into_iter().map(Given::Thresholds)));
        given.sort_by_key(|(place, _)| *place);
        let mut read = ControlArgs::default();
        given.into_iter().for_each(|(_, given)| read.take(given));
        Ok(read)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = ControlArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ControlArgs {
    fn augment_args(command: Command) -> Command {
        Options::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Options::augment_args_for_update(command)
    }
}

fn thresholds(text: &str) -> Result<Thresholds, String> {
    let numbers =
        text.split_once(',').and_then(|(low, high)| Some([low.trim().parse().ok()?, high.trim().parse().ok()?]));
    let [low, high] = numbers.ok_or_else(|| "expected two numbers with `,` between them".to_owned())?;
    Ok(Thresholds { low, high })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> ControlArgs {
        let command = ControlArgs::augment_args(Command::new("c").allow_negative_numbers(true));
        let matches = command.try_get_matches_from(std::iter::once(&"c").chain(words)).unwrap();
        ControlArgs::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn options_belong_to_the_control_before_them() {
        let read = read(&[
            "--control",
            "a",
            "--control-image",
            "a.png",
            "--control-scale",
            "0.5",
            "--control",
            "b",
            "--control-end",
            "0.8",
            "--control-mode",
            "canny",
            "--control-preprocess",
            "canny",
            "--control-image",
            "b.png",
        ]);
        let [a, b] = &read.nets[..] else { panic!("{read:?}") };
        assert_eq!((a.scale, a.end, a.mode.as_deref()), (Some(0.5), None, None));
        assert_eq!((b.scale, b.end, b.mode.as_deref()), (None, Some(0.8), Some("canny")));
        assert_eq!((a.made.read().unwrap(), b.made.read().unwrap().name()), (Preprocess::None, "canny"));
        assert_eq!(read.images().map(|path| path.to_str().unwrap()).collect::<Vec<_>>(), ["a.png", "b.png"]);
        assert_eq!((read.image, read.wrong), (None, None));
    }

    #[test]
    fn options_at_wrong_places_are_noted() {
        assert_eq!(read(&["--control-image", "a.png"]).image, Some("a.png".into()));
        for (words, option) in [
            (&["--control-scale", "1"][..], "--control-scale"),
            (&["--control", "a", "--control-end", "1", "--control-end", "0.5"], "--control-end"),
            (&["--control-image", "a.png", "--control-image", "b.png"], "--control-image"),
        ] {
            assert_eq!(read(words).wrong.unwrap()[0], option);
        }
    }
}
