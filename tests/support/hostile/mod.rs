//! Hostile and damaged files and folders, each with how it is given and what becomes of it, for every command and for the C
//! library. The tests of the readers (`tests/malformed.rs`) and of models (`tests/bad_input`) hold what each message says; here is
//! one of every kind that they have.
//!
//! Everything is made of the built-in model, so that the tests of the C library can include this module.
#![allow(dead_code, clippy::unwrap_used)]

mod bytes;
#[allow(clippy::duplicate_mod, reason = "the tests of the C library include this module alone")]
#[path = "../../fixtures/mod.rs"]
mod fixtures;
mod folders;
mod model;

use std::fs;
use std::path::{Path, PathBuf};

/// What is done with a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Inspect,
    Check,
    Plan,
    Generate,
    Convert,
}

impl Use {
    pub(crate) const ALL: [Use; 5] = [Use::Inspect, Use::Check, Use::Plan, Use::Generate, Use::Convert];
}

/// What becomes of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing takes it.
    Refused,
    /// It can be read and looked at, and is no model or part that can be used.
    OnlyRead,
    /// A number in it is wrong: who reads the numbers refuses it.
    WrongNumbers,
    /// All is well with it, although it does not look so.
    Fine,
    /// What is wrong with it does not matter: commands that use it warn, and `inspect` says so.
    Warned,
}

impl Verdict {
    /// Whether `purpose` succeeds.
    pub(crate) fn allows(self, purpose: Use) -> bool {
        match self {
            Verdict::Refused => false,
            Verdict::OnlyRead => matches!(purpose, Use::Inspect | Use::Check),
            Verdict::WrongNumbers => matches!(purpose, Use::Inspect | Use::Plan),
            Verdict::Fine => true,
            Verdict::Warned => matches!(purpose, Use::Plan | Use::Generate | Use::Convert),
        }
    }
}

/// Something hostile.
pub(crate) struct Case {
    pub(crate) name: String,
    /// Options, and what each gives; `--model` is what `convert` takes without an option.
    pub(crate) given: Vec<(&'static str, PathBuf)>,
    /// What `inspect` looks at.
    pub(crate) inspected: PathBuf,
    /// What messages name.
    pub(crate) blamed: String,
    pub(crate) verdict: Verdict,
}

impl Case {
    /// Whether `purpose` says nothing that another case does not say: what is given for several parts is inspected once.
    pub(crate) fn skips(&self, purpose: Use) -> bool {
        matches!(purpose, Use::Inspect | Use::Check) && self.name.contains(" as --")
    }

    /// The case `name` of a model at `path`.
    fn model(name: impl Into<String>, path: PathBuf, blamed: &str, verdict: Verdict) -> Case {
        let given = vec![("--model", path.clone())];
        Case { name: name.into(), given, inspected: path, blamed: blamed.to_owned(), verdict }
    }

    /// What lies at `path` as a part of the built-in model.
    fn part(name: impl Into<String>, option: &'static str, path: PathBuf, blamed: &str, verdict: Verdict) -> Case {
        let given = vec![("--model", PathBuf::from("mini")), (option, path.clone())];
        Case { name: name.into(), given, inspected: path, blamed: blamed.to_owned(), verdict }
    }
}

/// The options that give parts of a model.
const PARTS: [&str; 6] =
    ["--transformer", "--text-encoder", "--text-encoder-2", "--vae", "--tokenizer", "--tokenizer-2"];

/// Makes all of them below `root`.
pub(crate) fn cases(root: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes, verdict) in bytes::all() {
        let path = root.join(&name);
        fs::write(&path, bytes).unwrap();
        cases.push(Case::model(&name, path.clone(), &name, verdict));
        // Some of them in the place of every part: the same readers are behind all of these.
        for option in PARTS.into_iter().filter(|_| bytes::IN_EVERY_PLACE.contains(&name.as_str())) {
            cases.push(Case::part(format!("{name} as {option}"), option, path.clone(), &name, verdict));
        }
    }
    let template = root.join("template");
    model::write(&template);
    cases.extend(folders::all(root, &template));
    cases
}
