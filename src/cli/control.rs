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
    /// the latents: edges for FLUX.1 Canny, a map of depth for FLUX.1 Depth. Several behind a union ControlNet of Stable Diffusion XL
    /// are followed together
    #[arg(long = "control-image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// How strongly the ControlNet before it works [default: 1]; of several pictures, one for all or one for each
    #[arg(long = "control-scale", value_name = "S")]
    scales: Vec<f32>,
    /// From which part of the steps on it works, 0 to 1 [default: 0]
    #[arg(long = "control-start", value_name = "A")]
    starts: Vec<f64>,
    /// Up to which part of the steps it works, 0 to 1 [default: 1]
    #[arg(long = "control-end", value_name = "B")]
    ends: Vec<f64>,
    /// What kind of picture it follows, for a union ControlNet, or its number. Of FLUX.1: canny, tile, depth, blur, pose, gray, lq. Of
    /// Stable Diffusion XL: openpose, depth, scribble, canny, normal, segment, tile, repaint; one for each of several pictures
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
    /// Its pictures.
    pub(super) images: Vec<PathBuf>,
    /// One for all pictures, or one for each.
    scales: Vec<f32>,
    start: Option<f64>,
    end: Option<f64>,
    /// One for each picture, if it tells kinds apart.
    modes: Vec<String>,
    /// What is made of each picture; what stands before the first picture is of that.
    made: Vec<Made>,
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
        let mut all = Vec::new();
        for net in &self.nets {
            all.append(&mut net.read(printer)?);
        }
        Ok(all)
    }

    /// All pictures.
    pub(super) fn images(&self) -> impl Iterator<Item = &PathBuf> {
        self.nets.iter().flat_map(|net| &net.images).chain(&self.image)
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
            (Given::Image(path), Some(net)) => {
                net.images.push(path);
                ("--control-image", true)
            }
            (Given::Image(path), None) => ("--control-image", image.replace(path).is_none()),
            (Given::Scale(scale), Some(net)) => {
                net.scales.push(scale);
                ("--control-scale", true)
            }
            (Given::Start(start), Some(net)) => ("--control-start", net.start.replace(start).is_none()),
            (Given::End(end), Some(net)) => ("--control-end", net.end.replace(end).is_none()),
            (Given::Mode(mode), Some(net)) => {
                net.modes.push(mode);
                ("--control-mode", true)
            }
            (Given::Preprocess(how), net) => {
                let made = net.map_or(made, ControlNet::made);
                ("--control-preprocess", made.how.replace(how).is_none())
            }
            (Given::Thresholds(thresholds), net) => {
                let made = net.map_or(made, ControlNet::made);
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
        let path = path.to_owned();
        ControlNet {
            path,
            images: Vec::new(),
            scales: Vec::new(),
            start: None,
            end: None,
            modes: Vec::new(),
            made: Vec::new(),
        }
    }

    /// What is made of the picture that was given last.
    fn made(&mut self) -> &mut Made {
        let at = self.images.len().saturating_sub(1);
        if self.made.len() <= at {
            self.made.resize(at + 1, Made::default());
        }
        &mut self.made[at]
    }

    /// The pictures that it follows.
    fn read(&self, printer: &Printer) -> Result<Vec<Control>> {
        let ControlNet { path, images, scales, start, end, modes, made } = self;
        let count = images.len();
        if count == 0 {
            let expected = format!("a picture for {} to follow", path.display());
            let error = Error::option("--control-image", expected, "none");
            return Err(error.with_hint("give it behind its --control"));
        }
        let of_each = format!("one for each of the {count} pictures of {}", path.display());
        if !(scales.len() <= 1 || scales.len() == count) {
            let expected =
                if count == 1 { "one behind each --control".to_owned() } else { format!("one, or {of_each}") };
            return Err(Error::option("--control-scale", expected, scales.len().to_string()));
        }
        if !(modes.is_empty() || modes.len() == count) {
            let expected = if count == 1 { "one behind each --control".to_owned() } else { of_each };
            return Err(Error::option("--control-mode", expected, modes.len().to_string()));
        }
        let mut all = Vec::with_capacity(count);
        for (i, image) in images.iter().enumerate() {
            let control = Control::new(open_picture(image, printer)?);
            all.push(Control {
                scale: scales.get(i).or(scales.first()).copied().unwrap_or(control.scale),
                start: start.unwrap_or(control.start),
                end: end.unwrap_or(control.end),
                mode: modes.get(i).cloned(),
                preprocess: made.get(i).map_or(Ok(Preprocess::None), Made::read)?,
                joins: i > 0,
                ..control
            });
        }
        Ok(all)
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
        assert_eq!((&a.scales[..], a.end, &a.modes[..]), (&[0.5][..], None, &[][..]));
        assert_eq!((&b.scales[..], b.end, &b.modes[..]), (&[][..], Some(0.8), &["canny".to_owned()][..]));
        assert!(a.made.is_empty());
        assert_eq!(b.made[0].read().unwrap().name(), "canny");
        assert_eq!(read.images().map(|path| path.to_str().unwrap()).collect::<Vec<_>>(), ["a.png", "b.png"]);
        assert_eq!((read.image, read.wrong), (None, None));
    }

    #[test]
    fn a_control_may_have_several_pictures() {
        let words = "--control u --control-image a.png --control-mode depth --control-scale 0.5 --control-image b.png \
                     --control-preprocess canny --control-mode canny";
        let read = read(&words.split_whitespace().collect::<Vec<_>>());
        let [net] = &read.nets[..] else { panic!("{read:?}") };
        assert_eq!(net.images, [PathBuf::from("a.png"), "b.png".into()]);
        assert_eq!((&net.modes[..], &net.scales[..]), (&["depth".to_owned(), "canny".to_owned()][..], &[0.5][..]));
        assert_eq!([0, 1].map(|i| net.made[i].read().unwrap().name()), ["none", "canny"]);
        assert_eq!(read.wrong, None);
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
