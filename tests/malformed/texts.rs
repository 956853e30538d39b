//! Texts that are bent at random: an error or what was asked for, in a moment, and no panic. `PINHOLE_BENDS` tries more of them.

use std::path::Path;
use std::time::{Duration, Instant};

use pinhole::builtin;
use pinhole::models::{autoencoder_kl, clip, flux, t5, unet};
use pinhole::pipeline::{Request, settings};
use pinhole::sample::{Sampler, Sampling, Scheduler};
use pinhole::source::Text;
use pinhole::text::{ClipTokenizer, T5Tokenizer, TokenizerConfig, t5_gguf_metadata};

use super::bend::{Random, bend};

/// Tries `each` with bent texts: about as many as take a second or two, or as many as were asked for.
fn tried(seeds: &[String], few: usize, each: impl Fn(&str)) {
    let count = std::env::var("PINHOLE_BENDS").ok().and_then(|count| count.parse().ok()).unwrap_or(few);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..count {
        let (seed, other) = (&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())]);
        let text = bend(&mut random, seed, other);
        let start = Instant::now();
        each(&text);
        assert!(start.elapsed() < Duration::from_secs(10), "{text}");
    }
}

const UNIGRAM: &str = r#"{"version":"1.0","added_tokens":[{"id":1,"content":"</s>","single_word":false,"lstrip":false,
    "rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},
    {"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"Prepend","prepend":"x"},{"type":"Strip",
    "strip_left":true,"strip_right":true},{"type":"Precompiled","precompiled_charsmap":"CAAAAAAAAABhBQAAeAA="}]},
    "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"WhitespaceSplit"},{"type":"Digits","individual_digits":true},
    {"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}]},"post_processor":{"type":
    "TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],"pair":[],
    "special_tokens":{"</s>":{"id":"</s>","ids":[1],"tokens":["</s>"]}}},"decoder":{"type":"Metaspace","replacement":"▁",
    "prepend_scheme":"always","split":true},"model":{"type":"Unigram","unk_id":2,"byte_fallback":false,"vocab":[["<pad>",0.0],
    ["</s>",0.0],["<unk>",0.0],["▁ab",-1.0],["▁",-2.0],["a",-3.0],["x",-3.5]]}}"#;
const BPE: &str = r#"{"version":"1.0","added_tokens":[{"id":6,"content":"<|endoftext|>","single_word":false,"lstrip":false,
    "rstrip":false,"normalized":true,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},
    {"type":"Replace","pattern":{"String":" "},"content":"Ġ"},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"Sequence",
    "pretokenizers":[{"type":"Split","pattern":{"Regex":"'s|[\\p{L}]+|\\p{N}|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},
    {"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]},"post_processor":{"type":
    "RobertaProcessing","sep":["<|endoftext|>",6],"cls":["<|startoftext|>",5],"trim_offsets":false,"add_prefix_space":false},
    "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
    {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":1}]},"model":{"type":"BPE","dropout":null,"unk_token":"a",
    "continuing_subword_prefix":"","end_of_word_suffix":"</w>","fuse_unk":false,"byte_fallback":true,"ignore_merges":false,
    "vocab":{"a":0,"b":1,"ab":2,"ab</w>":3,"b</w>":4,"<|startoftext|>":5,"<|endoftext|>":6},"merges":[["a","b"],["a","b</w>"]]}}"#;

#[test]
fn bent_tokenizers() {
    let (config, origin) = (TokenizerConfig::default(), Path::new("bent.json"));
    // As they are, they work.
    ClipTokenizer::from_json(BPE, &config, origin).unwrap().encode("ab b").unwrap();
    T5Tokenizer::from_json(UNIGRAM, &config, origin).unwrap().encode("ab b", None).unwrap_err();
    let prompt = "ab  A!1 <|endoftext|> żb </s> ﷺ x";
    tried(&[UNIGRAM.to_owned(), BPE.to_owned()], 4_000, |text| {
        if let Ok(clip) = ClipTokenizer::from_json(text, &config, origin) {
            if let Ok(encoded) = clip.encode(prompt) {
                assert!(encoded.ids.len() == clip.length() && encoded.used <= clip.length());
            }
            let _ = clip.to_json();
        }
        if let Ok(t5) = T5Tokenizer::from_json(text, &config, origin) {
            if let Ok(encoded) = t5.encode(prompt, Some(8)) {
                assert!(encoded.ids.len() == 8 && encoded.used <= 8);
            }
            let _ = t5.to_json().map(|json| t5_gguf_metadata(&json, t5.vocab_size(), origin));
        }
    });
}

#[test]
fn bent_configurations() {
    let source = builtin::mini().unwrap();
    let model = pinhole::pipeline::open(&source).unwrap();
    let origin = Path::new("bent.json");
    let networks: Vec<String> = model.networks().iter().map(|network| network.config.to_string()).collect();
    tried(&networks, 4_000, |text| {
        let _ = flux::Config::from_json(text, origin);
        let _ = clip::Config::from_json(text, origin);
        let _ = t5::Config::from_json(text, origin);
        let _ = unet::Config::from_json(text, origin);
        let _ = autoencoder_kl::Config::from_json(text, origin);
    });
    let mut schedules: Vec<String> = source.scheduler.iter().map(|text| text.text.clone()).collect();
    for class in ["PNDM", "DDIM", "EulerDiscrete", "UniPCMultistep", "DPMSolverMultistep"] {
        schedules.push(format!(
            r#"{{"_class_name":"{class}Scheduler","beta_start":0.00085,"beta_end":0.012,"beta_schedule":"scaled_linear",
            "num_train_timesteps":1000,"prediction_type":"epsilon","steps_offset":1,"skip_prk_steps":true,"solver_order":2,
            "timestep_spacing":"leading","trained_betas":null,"set_alpha_to_one":false,"use_karras_sigmas":true}}"#
        ));
    }
    tried(&schedules, 1_500, |text| {
        let Ok(scheduler) = Scheduler::from_json(text, origin) else { return };
        for sampler in Sampler::ALL {
            let asked = Sampling { sampler: Some(*sampler), ..Sampling::default() };
            let Ok(chosen) = scheduler.choose(&asked) else { continue };
            for steps in [1, 7, 1000] {
                let _ = scheduler.levels(&chosen, steps, 64);
            }
        }
    });
    let text = r#"{"bos_token":"<s>","eos_token":{"content":"</s>","special":true},"added_tokens_decoder":{"2":{"content":"!"}},
        "model_max_length":77}"#;
    tried(&[text.to_owned()], 2_000, |text| drop(TokenizerConfig::from_json(text, origin)));
}

#[test]
fn bent_defaults() {
    let text = r#"{"width":64,"height":64,"num_inference_steps":4,"guidance_scale":3.5,"true_cfg_scale":1.0,
        "negative_prompt":"","max_sequence_length":77}"#;
    let source = builtin::mini().unwrap();
    tried(&[text.to_owned()], 40, |text| {
        let mut bent = source.clone();
        bent.defaults = Some(Text { text: text.to_owned(), origin: "bent.json".into() });
        if let Ok(model) = pinhole::pipeline::open(&bent) {
            let _ = settings(&model, &Request::new("a red circle"));
        }
    });
}
