//! The names of Python that a file may use: those that tensors and dictionaries of them are made with.

use pinhole_quant::DType;

use super::format::Format;
use crate::index::Storage;

/// Something with a name in Python that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// A dictionary, which keeps its order.
    OrderedDict,
    /// The extents of a tensor.
    Size,
    /// Where a tensor was.
    Device,
    /// A tensor of a storage that has a format.
    RebuildTensor,
    /// The same with what is remembered of its training.
    RebuildTensorV2,
    /// A tensor of bytes, with its own format.
    RebuildTensorV3,
    /// A tensor that is trained.
    RebuildParameter,
    /// A number format, or the storage of one, by its place in [`FORMATS`].
    Format(usize),
    /// A storage of bytes.
    Untyped,
}

/// The global `module.name`; `None` for every one that could do more than make a tensor.
pub(super) fn find(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Device,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch" | "torch.storage", "UntypedStorage") => Global::Untyped,
        ("torch" | "torch.cuda", _) => Global::Format(
            FORMATS.iter().position(|(class, dtype, _)| (!class.is_empty() && name == *class) || name == *dtype)?,
        ),
        _ => return None,
    })
}

/// A format that is read, or one of so many bytes that is not.
#[derive(Clone, Copy)]
enum Known {
    Number(DType),
    Other(Storage),
    Unread(usize),
}

/// PyTorch's class of a storage (none for formats that came later), and its name of the number format.
const FORMATS: [(&str, &str, Known); 20] = [
    ("DoubleStorage", "float64", Known::Number(DType::F64)),
    ("FloatStorage", "float32", Known::Number(DType::F32)),
    ("HalfStorage", "float16", Known::Number(DType::F16)),
    ("BFloat16Storage", "bfloat16", Known::Number(DType::BF16)),
    ("LongStorage", "int64", Known::Number(DType::I64)),
    ("IntStorage", "int32", Known::Number(DType::I32)),
    ("ShortStorage", "int16", Known::Number(DType::I16)),
    ("CharStorage", "int8", Known::Number(DType::I8)),
    ("ByteStorage", "uint8", Known::Other(Storage::U8)),
    ("BoolStorage", "bool", Known::Other(Storage::Bool)),
    ("", "uint16", Known::Other(Storage::U16)),
    ("", "uint32", Known::Other(Storage::U32)),
    ("", "uint64", Known::Other(Storage::U64)),
    ("", "float8_e4m3fn", Known::Other(Storage::F8E4M3)),
    ("", "float8_e5m2", Known::Other(Storage::F8E5M2)),
    ("", "float8_e4m3fnuz", Known::Unread(1)),
    ("", "float8_e5m2fnuz", Known::Unread(1)),
    ("", "float8_e8m0fnu", Known::Unread(1)),
    ("ComplexFloatStorage", "complex64", Known::Unread(8)),
    ("ComplexDoubleStorage", "complex128", Known::Unread(16)),
];

impl Global {
    /// The number format that it names.
    pub(super) fn format(self) -> Option<Format> {
        match self {
            Global::Untyped => Some(Format::Untyped),
            Global::Format(at) => Some(match FORMATS.get(at)? {
                (_, _, Known::Number(dtype)) => Format::Known((*dtype).into()),
                (_, _, Known::Other(storage)) => Format::Known(*storage),
                (_, name, Known::Unread(width)) => Format::Other(name, *width),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_makers_of_tensors_are_known() {
        assert_eq!(find("collections", "OrderedDict"), Some(Global::OrderedDict));
        assert_eq!(
            find("torch", "HalfStorage").and_then(Global::format),
            find("torch", "float16").and_then(Global::format)
        );
        assert_eq!(find("torch.cuda", "FloatStorage"), find("torch", "FloatStorage"));
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("torch", "load"),
            ("torch", ""),
            ("torch.storage", "_load_from_bytes"),
            ("torch._utils", "_rebuild_qtensor"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("collections", "OrderedDict.fromkeys"),
        ] {
            assert_eq!(find(module, name), None, "{module}.{name}");
        }
    }
}
