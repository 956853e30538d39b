//! Files of tensors as PyTorch wrote them before 1.6.

/// A tensor's name, its shape in PyTorch's order, and its numbers.
pub(crate) type Named = (String, Vec<usize>, Vec<f32>);

/// A file of `tensors`: a dictionary of them, which is itself in a dictionary under `within`, if that is given.
pub(crate) fn older(within: Option<&str>, tensors: &[Named]) -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let int = |number: usize| [b"J", &(number as u32).to_le_bytes()[..]].concat();
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02}".to_vec();
    if let Some(name) = within {
        file.extend([text(name), b"}".to_vec()].concat());
    }
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        file.extend(text(name));
        file.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        file.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&i.to_string()), text("cpu")].concat());
        file.extend([int(values.len()), b"tQK\0(".to_vec()].concat());
        file.extend(shape.iter().flat_map(|extent| int(*extent)));
        file.extend(b"t(");
        for at in 1..=shape.len() {
            file.extend(int(shape[at..].iter().product()));
        }
        file.extend(b"t\x89}tRs");
    }
    if within.is_some() {
        file.extend(b"s");
    }
    file.extend(b".\x80\x02](");
    (0..tensors.len()).for_each(|i| file.extend(text(&i.to_string())));
    file.extend(b"e.");
    for (.., values) in tensors {
        file.extend((values.len() as u64).to_le_bytes());
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file
}
