//! Files that need one another cannot be read alone. Those that may are listed here.

/// The circles of a crate's files that are accepted, each with its reason. A circle may become smaller or go: then its line here
/// has to follow.
pub(crate) const ACCEPTED: &[(&str, &[&str], &str)] = &[
    (
        "src",
        &["bind/lora/delta.rs", "bind/mod.rs"],
        "weights that are found may have changes of tables, and a change reads the weights that were found",
    ),
    ("src", &["convert/mod.rs", "convert/requantize.rs"], "to be cut: `requantize` needs the type of a planned tensor"),
    (
        "src",
        &[
            "ggml/alone.rs",
            "ggml/arena.rs",
            "ggml/attend.rs",
            "ggml/backend.rs",
            "ggml/buffer.rs",
            "ggml/channel_norm.rs",
            "ggml/convolve.rs",
            "ggml/device.rs",
            "ggml/elementwise.rs",
            "ggml/floats.rs",
            "ggml/graph.rs",
            "ggml/nodes.rs",
            "ggml/product.rs",
            "ggml/queue.rs",
        ],
        "a device makes backends and staging memory, a graph has a device and pinhole's own operations, and backends compute graphs",
    ),
    (
        "src",
        &["ggml/scratch/cuda.rs", "ggml/scratch/mod.rs", "ggml/scratch/vulkan.rs"],
        "one table in three files: `mod.rs` has its types and picks the backend's part",
    ),
    (
        "src",
        &["stage.rs", "stage/branch.rs", "stage/rows.rs"],
        "`Model` and `Build` in three files: what a model declares is computed as a whole, by rows, and with branches",
    ),
    (
        "src",
        &["cli/bench/matmul/measure.rs", "cli/bench/matmul/mod.rs", "cli/bench/matmul/report.rs"],
        "one command in three files: its arguments lie in `mod.rs`",
    ),
    (
        "src",
        &["cli/convert/mod.rs", "cli/convert/report.rs"],
        "one command in two files: its arguments lie in `mod.rs`",
    ),
    (
        "src",
        &["cli/generate/mod.rs", "cli/generate/report.rs"],
        "one command in two files: its arguments lie in `mod.rs`",
    ),
];

/// What is wrong with the `circles` of the crate in `folder`.
pub(crate) fn unexpected(folder: &str, circles: &[Vec<String>], accepted: &[(&str, &[&str], &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let here = || accepted.iter().filter(|(of, ..)| *of == folder);
    for circle in circles {
        if !here().any(|(_, files, _)| circle.iter().all(|file| files.contains(&file.as_str()))) {
            wrong.push(format!(
                "{folder}: these files import one another: {}. Move what they share to a file that imports none of them",
                circle.join(", ")
            ));
        }
    }
    for file in here().flat_map(|(_, files, _)| *files) {
        if !circles.iter().flatten().any(|other| other == file) {
            wrong.push(format!(
                "tests/layers/circles.rs: {folder}/{file} is in no circle any more: remove it from the list"
            ));
        }
    }
    wrong
}

#[test]
fn circles_are_on_the_list_or_wrong() {
    let circle = |files: &[&str]| files.iter().map(|&file| file.to_owned()).collect::<Vec<String>>();
    let found = [circle(&["a.rs", "b.rs"]), circle(&["m/c.rs", "m/d.rs"])];
    let ab: (&str, &[&str], &str) = ("src", &["a.rs", "b.rs"], "");
    let cde: (&str, &[&str], &str) = ("src", &["m/c.rs", "m/d.rs", "m/e.rs"], "");
    let wrong = unexpected("src", &found, &[ab]);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].contains("m/c.rs, m/d.rs"), "{wrong:?}");
    let wrong = unexpected("src", &found, &[ab, cde]);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].contains("src/m/e.rs is in no circle any more"), "{wrong:?}");
    assert_eq!(unexpected("capi/src", &found, &[ab, cde]).len(), 2);
}
