//! FLUX.2 from the files of other tools, and what they say.

use super::*;

/// A tokenizer as Mistral writes it, in a tensor beside the weights, reads texts as the same in a `tokenizer.json` does.
#[test]
fn a_tokenizer_lies_beside_the_weights() {
    let (golden, dir) = dev();
    let path = support::golden::directory().join("tokenizers/tekken/tokenizer.json");
    let json = fs::read_to_string(&path).unwrap();
    let known: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vocab = known["model"]["vocab"].as_object().unwrap();
    let mut words: Vec<(u64, &String)> = vocab.iter().map(|(word, id)| (id.as_u64().unwrap(), word)).collect();
    words.sort();
    let marks = known["added_tokens"].as_array().unwrap().len();
    // The letters of bytes, in the order in which GPT-2 shows them.
    let printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut letters: Vec<(char, u8)> = (0..=255).filter(printed).map(|byte| (char::from(byte), byte)).collect();
    letters.extend((256..).filter_map(char::from_u32).zip((0..=255).filter(|byte| !printed(byte))));
    let mut vocab = Vec::new();
    for (_, word) in &words[marks..] {
        let bytes = word.chars().map(|c| letters.iter().find(|(letter, _)| *letter == c).unwrap().1);
        vocab.push(serde_json::json!({ "token_bytes": base64::encode(bytes.collect::<Vec<u8>>()) }));
    }
    let tekken = serde_json::json!({
        "config": {
            "pattern": known["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
            "default_vocab_size": words.len(),
            "default_num_special_tokens": marks,
        },
        "vocab": vocab,
        "special_tokens": words[..marks].iter()
            .map(|(id, word)| serde_json::json!({ "rank": id, "token_str": word }))
            .collect::<Vec<_>>(),
    });
    let mut stored = std::collections::BTreeMap::new();
    let weights = support::z_image::tensors(&golden, "text_encoder");
    for tensor in &weights {
        let values = Format::F32.encode(&tensor.values);
        stored.insert(tensor.name.as_str(), (safetensors::Dtype::F32, tensor.shape.clone(), values));
    }
    let text = tekken.to_string().into_bytes();
    stored.insert("tekken_model", (safetensors::Dtype::U8, vec![text.len()], text));
    support::sd1::write_safetensors(&dir.path().join("mistral_3_small_flux2.safetensors"), &stored);
    let parts = vec![(&TEXT_ENCODER, dir.path().join("mistral_3_small_flux2.safetensors"))];
    let source = Source::assemble(Some(Source::open(dir.path()).unwrap()), &Files { parts, tokenizers: Vec::new() });
    let family = FAMILIES.iter().find(|family| family.name == "flux2").unwrap();
    let source = source.unwrap().arranged(family.name, family.places).unwrap();
    let found = source.tokenizer(&TEXT_ENCODER).unwrap();
    let read = |json: &str| pinhole::text::ByteLevelTokenizer::from_json(json, &Default::default(), &path).unwrap();
    let [found, expected] = [read(&found.tokenizer.text), read(&json)];
    for text in
        ["", "a red star", "[INST]Two  purple\n rings, 12 moons![/INST]<pad>", "\u{e9} \u{4f60}\u{597d} \u{1f431}"]
    {
        assert_eq!(found.encode(text, 99).unwrap(), expected.encode(text, 99).unwrap(), "{text}");
    }
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = model();
    let loose = tempfile::tempdir().unwrap();
    write_original(&loose.path().join("flux-2-klein-base-4b.safetensors"), &golden, "model.diffusion_model.");
    write_gguf(&dir.path().join("flux2-F32.gguf"), &golden, "flux", Format::F32);
    write_gguf(&dir.path().join("flux-2-klein-4b-F32.gguf"), &golden, "flux2", Format::F32);
    write_llama(&loose.path().join("qwen-F32.gguf"), &golden, Format::F32);
    write_vae(&loose.path().join("flux2-vae.safetensors"), &golden, "vae");
    let case = Request { steps: Some(1), ..request(&golden, "references_cfg") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    // In one folder, without a word on what is what.
    let folder = open(loose.path());
    assert_eq!((folder.rules.defaults.steps, folder.rules.defaults.cfg_scale), (50, 4.0));
    let drawn = generate(&mut on(folder, "cpu"), &case);
    assert!(bits(&expected) == bits(&drawn) && expected.images == drawn.images);
    for name in ["flux2-F32.gguf", "flux-2-klein-4b-F32.gguf"] {
        let model = with(dir.path(), &[(&TRANSFORMER, name)]).unwrap();
        assert!(bits(&expected) == bits(&generate(&mut on(model, "cpu"), &case)), "{name}");
        // One by one, without a model below them.
        let parts = vec![
            (&TRANSFORMER, dir.path().join(name)),
            (&TEXT_ENCODER, loose.path().join("qwen-F32.gguf")),
            (&VAE, loose.path().join("flux2-vae.safetensors")),
        ];
        let model = pipeline::open(&Source::assemble(None, &Files { parts, tokenizers: Vec::new() }).unwrap()).unwrap();
        assert_eq!((model.family.name, model.rules.defaults.steps), ("flux2", 4));
        assert!(bits(&expected) == bits(&generate(&mut on(model, "cpu"), &case)), "{name} alone");
    }
}

#[test]
fn what_it_was_published_as_says_how_it_draws() {
    let (golden, dir) = model();
    let defaults = |model: Opened| (model.rules.defaults.steps, model.rules.defaults.cfg_scale);
    // As diffusers has it, nothing stands for false.
    assert_eq!(defaults(open(dir.path())), (50, 4.0));
    set_distilled(dir.path(), true);
    assert_eq!(defaults(open(dir.path())), (4, 1.0));
    // A bundle remembers.
    set_distilled(dir.path(), false);
    let path = dir.path().join("distilled.gguf");
    bundle(&open(dir.path()), &path, "f16");
    assert_eq!(defaults(open(&path)), (50, 4.0));
    set_distilled(dir.path(), true);
    write_original(&dir.path().join("klein_base.safetensors"), &golden, "");
    let given = with(dir.path(), &[(&TRANSFORMER, "klein_base.safetensors")]).unwrap();
    bundle(&given, &path, "f16");
    assert_eq!((defaults(given), defaults(open(&path))), ((50, 4.0), (50, 4.0)));
    // Of other files, the name tells.
    let loose = tempfile::tempdir().unwrap();
    let name = loose.path().join("flux-2-klein-4b.safetensors");
    write_original(&name, &golden, "");
    write_llama(&loose.path().join("qwen.gguf"), &golden, Format::F32);
    write_vae(&loose.path().join("flux2-vae.safetensors"), &golden, "vae");
    assert_eq!(defaults(open(loose.path())), (4, 1.0));
    fs::rename(name, loose.path().join("flux-2-klein-base-4b.safetensors")).unwrap();
    let base = open(loose.path());
    bundle(&base, &path, "f16");
    assert_eq!((defaults(base), defaults(open(&path))), ((50, 4.0), (50, 4.0)));
}
