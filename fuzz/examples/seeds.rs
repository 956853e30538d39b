//! Writes the seed corpora into `corpus/`: valid files for the fuzzers to bend.

#[path = "../../tests/fixtures/mod.rs"]
mod fixtures;

use std::fs;
use std::io::Result;
use std::path::Path;

use fixtures::{RawGguf, RawTensor};
use pinhole_quant::DType;

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    write(&corpus.join("gguf"), gguf())?;
    write(&corpus.join("safetensors"), safetensors())?;
    write(&corpus.join("pickles"), pickles()?)?;
    write(&corpus.join("pictures"), pictures()?)?;
    write(&corpus.join("tokenizer"), tokenizers())?;
    write(&corpus.join("configs"), configs())
}

fn write(directory: &Path, seeds: Vec<Vec<u8>>) -> Result<()> {
    fs::create_dir_all(directory)?;
    seeds.iter().enumerate().try_for_each(|(number, seed)| fs::write(directory.join(format!("seed-{number}")), seed))
}

fn gguf() -> Vec<Vec<u8>> {
    let mut seeds = vec![RawGguf::small().bytes(), RawGguf::empty().bytes()];
    seeds.push(RawGguf { version: 2, ..RawGguf::small() }.bytes());
    seeds.push(RawGguf { version: 1, ..RawGguf::small() }.bytes());
    seeds.push(RawGguf { magic: *b"FUGG", ..RawGguf::small() }.bytes());
    seeds.push(RawGguf::with_entry("deep", fixtures::nested(4)).bytes());
    let mut aligned = RawGguf::with_entry("general.alignment", fixtures::typed(fixtures::U32, &64u32.to_le_bytes()));
    aligned.alignment = 64;
    aligned.tensors.truncate(1);
    seeds.push(aligned.bytes());
    // One of each value type, scalar and in an array; the bytes are good for any of them.
    let mut values = RawGguf::empty();
    for kind in (0..13).filter(|&kind| kind != fixtures::ARRAY) {
        values.push(&format!("scalar{kind}"), fixtures::typed(kind, &[0; 8][..width(kind)]));
        values.push(&format!("array{kind}"), fixtures::array(kind, 2, &[0; 16][..2 * width(kind)]));
    }
    seeds.push(values.bytes());
    for dtype in DType::all() {
        let tensor = RawTensor::new("w", &[dtype.block_size() as u64, 2], dtype.id(), 0);
        let data = vec![0; 2 * dtype.block_bytes()];
        seeds.push(RawGguf { tensors: vec![tensor], data, ..RawGguf::empty() }.bytes());
    }
    seeds
}

/// Bytes of a value of this type; strings are empty.
fn width(kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

fn safetensors() -> Vec<Vec<u8>> {
    let mut seeds = vec![fixtures::small_safetensors(), fixtures::safetensors("{}", 0)];
    let formats = [
        "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8",
        "BOOL", "C64", "F4",
    ];
    for format in formats {
        for bytes in [1, 2, 4, 8] {
            let header = format!(r#"{{"w":{{"dtype":"{format}","shape":[1,1],"data_offsets":[0,{bytes}]}}}}"#);
            seeds.push(fixtures::safetensors(&header, bytes));
        }
    }
    let twice =
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    seeds.push(fixtures::safetensors(twice, 1));
    seeds
}

/// The files that PyTorch wrote for the tests.
fn pickles() -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/pickles");
    let mut seeds = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension != "safetensors") {
            seeds.push(fs::read(path)?);
        }
    }
    Ok(seeds)
}

fn pictures() -> Result<Vec<Vec<u8>>> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/pictures");
    fs::read_dir(goldens)?.map(|entry| fs::read(entry?.path())).collect()
}

/// Small ones of every shape that passes, each behind a prompt.
fn tokenizers() -> Vec<Vec<u8>> {
    let special = |id: u32, text: &str| {
        format!(
            r#"{{"id":{id},"content":"{text}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
        )
    };
    let bpe = r#"{"type":"BPE","dropout":null,"unk_token":"a","continuing_subword_prefix":"","end_of_word_suffix":"</w>","fuse_unk":false,"byte_fallback":true,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2,"ab</w>":3,"b</w>":4,"<|startoftext|>":5,"<|endoftext|>":6,"</s>":7,"<pad>":8},"merges":[["a","b"],["a","b</w>"]]}"#;
    let unigram = r#"{"type":"Unigram","unk_id":2,"byte_fallback":false,"vocab":[["<pad>",0.0],["</s>",0.0],["<unk>",0.0],["▁ab",-1.0],["▁",-2.0],["a",-3.0],["<|startoftext|>",0],["<|endoftext|>",0]]}"#;
    let words = r#"{"type":"Split","pattern":{"Regex":"'s|[\\p{L}]+|[\\p{N}]|\\s+(?!\\S)|\\s+"},"behavior":"Removed","invert":true}"#;
    let metaspace = r#"{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always","split":true}"#;
    let byte_level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
    let replace = r#"{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}"#;
    // A trie of two units, and a text.
    let charsmap = r#"{"type":"Precompiled","precompiled_charsmap":"CAAAAAAAAABhBQAAeAA="}"#;
    let template = r#"{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],"pair":[],"special_tokens":{"</s>":{"id":"</s>","ids":[1],"tokens":["</s>"]}}}"#;
    let normalizers = [
        "null".to_owned(),
        r#"{"type":"NFKC"}"#.to_owned(),
        charsmap.to_owned(),
        format!(
            r#"{{"type":"Sequence","normalizers":[{{"type":"NFC"}},{{"type":"Prepend","prepend":"x"}},{replace},{{"type":"Lowercase"}},{{"type":"Strip","strip_left":true,"strip_right":true}},{{"type":"Nmt"}},{{"type":"StripAccents"}}]}}"#
        ),
    ];
    let splits = [
        "null".to_owned(),
        format!(r#"{{"type":"Sequence","pretokenizers":[{words},{byte_level}]}}"#),
        format!(r#"{{"type":"Sequence","pretokenizers":[{{"type":"WhitespaceSplit"}},{metaspace}]}}"#),
        r#"{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Isolated"}]}"#.to_owned(),
    ];
    let decoders = [
        byte_level.to_owned(),
        metaspace.to_owned(),
        r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#.to_owned(),
        r#"{"type":"BPEDecoder","suffix":"</w>"}"#.to_owned(),
    ];
    let mut seeds = Vec::new();
    for model in [bpe, unigram] {
        for ((normalizer, split), decoder) in normalizers.iter().zip(&splits).zip(&decoders) {
            let added = special(if model == bpe { 6 } else { 7 }, "<|endoftext|>");
            seeds.push(format!(
                "ab  A!1 <|endoftext|> \u{17c}b\n{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[{added}],\"normalizer\":{normalizer},\"pre_tokenizer\":{split},\"post_processor\":{template},\"decoder\":{decoder},\"model\":{model}}}"
            ).into_bytes());
        }
    }
    seeds
}

/// The miniature's, and the schedules that there are, each behind its kind.
fn configs() -> Vec<Vec<u8>> {
    let kind = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    let mut seeds = Vec::new();
    if let Ok(source) = pinhole::builtin::mini() {
        let models = pinhole::pipeline::open(&source);
        for network in models.iter().flat_map(|model| model.networks()) {
            let text = network.config.to_string();
            seeds.extend((0..5).map(|number| kind(number, &text)));
        }
        seeds.extend(source.scheduler.iter().map(|text| kind(6, &text.text)));
        seeds.extend(source.defaults.iter().map(|text| kind(7, &text.text)));
    }
    for class in ["PNDM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep"] {
        seeds.push(kind(6, &format!(
            r#"{{"_class_name":"{class}Scheduler","beta_start":0.00085,"beta_end":0.012,"beta_schedule":"scaled_linear","num_train_timesteps":1000,"prediction_type":"epsilon","steps_offset":1,"skip_prk_steps":true,"timestep_spacing":"leading","trained_betas":null,"set_alpha_to_one":false,"clip_sample":false,"use_karras_sigmas":true,"solver_order":2}}"#
        )));
    }
    seeds.push(kind(5, r#"{"bos_token":"<s>","eos_token":{"content":"</s>","special":true},"added_tokens_decoder":{"2":{"content":"!"}},"model_max_length":77}"#));
    seeds.push(kind(7, r#"{"width":64,"height":64,"num_inference_steps":4,"guidance_scale":3.5,"true_cfg_scale":1.0,"negative_prompt":"","max_sequence_length":77}"#));
    seeds
}
