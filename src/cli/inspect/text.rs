//! A report for people.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::cli::table::Table;
use crate::cli::units::{bytes, count, counted, shown};
use pinhole::entries::Entries;
use pinhole::inspect::{
    CheckReport, ComponentReport, LoraReport, Report, SecondReading, TensorReport, TokenizerReport, TypeReport,
};

/// How many unused tensors are named; `--json` names all.
const NAMED: usize = 8;

/// The report as text, sections with a heading each.
pub(super) fn render(report: &Report) -> String {
    let mut text = headline(report);
    let mut section = |heading: &str, body: String| {
        if !body.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{heading}\n{body}");
        }
    };
    section("LoRA", report.lora.as_ref().map(lora).unwrap_or_default());
    section("settings", pairs(&report.settings));
    section("components", components(&report.components));
    section("types", types(&report.types));
    section("tokenizers", tokenizers(&report.tokenizers));
    section("schedule", pairs(&report.scheduler));
    section("defaults", pairs(&report.defaults));
    section("metadata", pairs(&report.metadata));
    section("unused tensors", report.components.iter().map(unused).collect());
    section("tensors", report.tensor_list.as_deref().map(tensors).unwrap_or_default());
    section("check", report.check.as_ref().map(check).unwrap_or_default());
    section("problems", problems(report));
    text
}

fn headline(report: &Report) -> String {
    let what = match (report.kind, &report.architecture) {
        ("bundle", Some(architecture)) => format!("pinhole bundle of {}", shown(architecture)),
        ("diffusers", Some(architecture)) => format!("diffusers directory of {}", shown(architecture)),
        ("files", Some(architecture)) => format!("files of {}", shown(architecture)),
        ("gguf", Some(architecture)) => format!("GGUF, says `{}`", shown(architecture)),
        ("gguf", None) => "GGUF, of no named architecture".into(),
        ("pytorch", _) => "file of PyTorch's".into(),
        _ => "safetensors".into(),
    };
    let mut text = format!("{}: {what}\n", shown(&report.path.display().to_string()));
    if report.components.is_empty() {
        let holds = match &report.lora {
            Some(LoraReport { family: Some(family), .. }) => format!("a LoRA, it seems for {family}"),
            Some(_) => "a LoRA for a model that pinhole does not know".into(),
            None if report.holds.is_empty() => "nothing that pinhole recognises".into(),
            None => report.holds.join("; "),
        };
        text += &format!("  holds {holds}\n");
    }
    let (parameters, size) = (count(report.parameters), bytes(report.bytes));
    text + &format!("  {}, {parameters} parameters, {size}\n", counted(report.tensors, "tensor"))
}

fn lora(lora: &LoraReport) -> String {
    let LoraReport { title, base, triggers, modules, parts, forms, ranks, alphas, purpose, settings, .. } = lora;
    let counts = |counts: &Entries<usize>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::new();
    for purpose in purpose {
        text += &format!("  it {}\n", shown(purpose));
    }
    for (what, said) in [("title", title), ("trained on", base), ("trigger words", triggers)] {
        text += &said.as_ref().map(|said| format!("  {what}: {}\n", shown(said))).unwrap_or_default();
    }
    for (key, said) in settings.iter() {
        text += &format!("  says {}: {}\n", shown(key), shown(said));
    }
    text += &format!("  {}: {}\n", counted(*modules, "module"), counts(parts));
    text += &format!("  changes: {}\n", counts(forms));
    if !ranks.is_empty() {
        text += &format!("  rank: {}\n", span(ranks));
    }
    if !alphas.is_empty() {
        text += &format!("  alpha: {}\n", span(alphas));
    }
    text
}

/// The smallest and the largest of sorted numbers.
fn span<N: std::fmt::Display>(numbers: &[N]) -> String {
    match numbers {
        [] => String::new(),
        [only] => only.to_string(),
        [least, .., most] => format!("{least} to {most}"),
    }
}

fn components(components: &[ComponentReport]) -> String {
    if components.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["name", ">tensors", ">parameters", ">size"]);
    for part in components {
        table.row([part.name.into(), part.tensors.to_string(), count(part.parameters), bytes(part.bytes)]);
    }
    let configs = components.iter().filter(|part| !part.config.is_empty()).map(|part| {
        let settings: Vec<String> = part.config.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
        format!("  {}: {}\n", part.name, settings.join(", "))
    });
    table.to_string() + &configs.collect::<String>()
}

fn types(types: &[TypeReport]) -> String {
    let mut table = Table::new(["type", ">tensors", ">parameters", ">size"]);
    for row in types {
        table.row([shown(&row.name), row.tensors.to_string(), count(row.parameters), bytes(row.bytes)]);
    }
    if types.is_empty() { String::new() } else { table.to_string() }
}

fn tokenizers(tokenizers: &[TokenizerReport]) -> String {
    tokenizers
        .iter()
        .map(|tokenizer| match (tokenizer.vocabulary, tokenizer.length) {
            (Some(vocabulary), Some(length)) => format!("  {}: {vocabulary} tokens, reads {length}\n", tokenizer.name),
            _ if tokenizer.present => format!("  {}: present\n", tokenizer.name),
            _ => format!("  {}: missing\n", tokenizer.name),
        })
        .collect()
}

fn pairs(object: &Entries<Json>) -> String {
    object.iter().map(|(key, value)| format!("  {}: {}\n", shown(key), plain(value))).collect()
}

/// A value, without quotes where they would say nothing.
fn plain(value: &Json) -> String {
    match value {
        Json::String(text) if !text.is_empty() => shown(text),
        other => shown(&other.to_string()),
    }
}

fn unused(component: &ComponentReport) -> String {
    if component.unused.is_empty() {
        return String::new();
    }
    let named: Vec<String> = component.unused.iter().take(NAMED).map(|name| shown(name)).collect();
    let more = component.unused.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("  {}: {}{more}\n", component.name, named.join(", "))
}

fn tensors(tensors: &[TensorReport]) -> String {
    let mut table = Table::new(["name", "type", "shape", ">size"]);
    for tensor in tensors {
        let size = bytes(tensor.bytes as u64);
        table.row([shown(&tensor.name), shown(&tensor.storage), format!("{:?}", tensor.shape), size]);
    }
    table.to_string()
}

fn check(check: &CheckReport) -> String {
    let headers: String = check.headers.iter().map(header).collect();
    if check.not_finite.is_empty() && check.unreadable.is_empty() {
        return format!("{headers}  all {} numbers are finite\n", check.numbers);
    }
    let broken = check.not_finite.iter().map(|found| {
        let (name, nan, infinite, first) = (shown(&found.tensor), found.nan, found.infinite, found.first);
        format!("  {name}: {nan} NaN, {infinite} infinite, the first at number {first}\n")
    });
    let unreadable = check.unreadable.iter().map(|found| format!("  {}: {}\n", shown(&found.tensor), found.reason));
    headers + &broken.chain(unreadable).collect::<String>()
}

/// What the second reader made of a header.
fn header(reading: &SecondReading) -> String {
    let (entries, tensors) = (counted(reading.entries, "value"), counted(reading.tensors, "tensor"));
    let lines = |lines: &[String]| lines.iter().map(|line| format!("    {}\n", shown(line))).collect::<String>();
    match (reading.differences.as_slice(), reading.unread.as_slice()) {
        ([], []) => format!("  header: {entries} and {tensors}, the same to a second reader (gguf-rs)\n"),
        ([], unread) => format!("  header: the second reader (gguf-rs) does not read such files\n{}", lines(unread)),
        (differences, _) => {
            format!("  header: the second reader (gguf-rs) sees something else\n{}", lines(differences))
        }
    }
}

fn problems(report: &Report) -> String {
    report
        .problems
        .iter()
        .map(|problem| {
            let hint = problem.hint.as_ref().map(|hint| format!("    hint: {}\n", shown(hint))).unwrap_or_default();
            format!("  {}\n{hint}", shown(&problem.message))
        })
        .collect()
}
