//! What the values of a pickle say about tensors, held against the file.

use super::archive::Archive;
use super::unpickle::unpickle;
use crate::error::quoted;
use candle_core::DType;
use candle_core::pickle::Object;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// A tensor: which bytes of the file it is.
pub(super) struct View {
    dtype: DType,
    shape: Vec<usize>,
    /// How far apart neighbours in each dimension are, in elements.
    stride: Vec<usize>,
    /// Of the first element, in bytes from the beginning of the file.
    start: usize,
}

/// The tensors of an archive by name.
pub(super) fn tensors(archive: &Archive<'_>) -> Result<BTreeMap<String, View>, String> {
    let Object::Dict(pairs) = unpickle(archive.pickle()?)? else {
        return Err("it does not hold a dictionary of tensors".into());
    };
    let (mut tensors, mut storages) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in pairs {
        let Object::Unicode(name) = name else { return Err("a name in its dictionary is not a text".into()) };
        // PyTorch hangs versions of modules on the dictionary, and the reader puts what hangs on a dictionary into it.
        if name == "_metadata" && matches!(value, Object::Dict(_)) {
            continue;
        }
        let view = Stored::new(&value).and_then(|stored| stored.find(archive, &mut storages));
        let view = view.map_err(|error| format!("{}: {error}", quoted(&name)))?;
        if tensors.contains_key(&name) {
            return Err(format!("it has two tensors {}", quoted(&name)));
        }
        tensors.insert(name, view);
    }
    Ok(tensors)
}

/// What a pickle says about one tensor.
struct Stored<'a> {
    dtype: DType,
    /// The entry with the elements.
    storage: &'a str,
    /// How many the entry has.
    elements: usize,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
}

impl<'a> Stored<'a> {
    fn new(value: &'a Object) -> Result<Self, String> {
        let Object::Tuple(arguments) = rebuilt(value, 0)? else { return Err(unknown()) };
        let [Object::PersistentLoad(storage), offset, Object::Tuple(shape), Object::Tuple(stride), ..] =
            arguments.as_slice()
        else {
            return Err(unknown());
        };
        let Object::Tuple(storage) = storage.as_ref() else { return Err(unknown()) };
        let [Object::Unicode(kind), Object::Class { class_name, .. }, Object::Unicode(key), _, elements] =
            storage.as_slice()
        else {
            return Err(unknown());
        };
        if kind != "storage" {
            return Err(unknown());
        }
        let dtype = match class_name.as_str() {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            other => {
                return Err(format!(
                    "its numbers are in a `{other}`; supported: Float-, Double-, Half- and BFloat16Storage"
                ));
            }
        };
        let sizes = |values: &[Object]| values.iter().map(size).collect::<Result<Vec<_>, _>>();
        let (shape, stride) = (sizes(shape)?, sizes(stride)?);
        if shape.len() != stride.len() {
            return Err(format!("it has the shape {shape:?}, but the strides {stride:?}"));
        }
        Ok(Self { dtype, storage: key, elements: size(elements)?, offset: size(offset)?, shape, stride })
    }

    /// Where in the file the tensor is. Each entry with elements is looked up, and so compared with its checksum, once.
    fn find(self, archive: &Archive<'_>, storages: &mut BTreeMap<String, Range<usize>>) -> Result<View, String> {
        let range = match storages.get(self.storage) {
            Some(range) => range.clone(),
            None => archive.entry(&format!("data/{}", self.storage))?,
        };
        storages.insert(self.storage.to_owned(), range.clone());
        let Self { dtype, elements, offset, shape, stride, .. } = self;
        let width = dtype.size_in_bytes();
        let found = range.len() / width;
        if elements != found || range.len() % width != 0 {
            return Err(format!(
                "{elements} numbers are said to be stored, but there are {} bytes of them",
                range.len()
            ));
        }
        let count = shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n));
        let last = shape
            .iter()
            .zip(&stride)
            .try_fold(offset, |last, (n, stride)| last.checked_add(n.saturating_sub(1).checked_mul(*stride)?));
        // A tensor larger than what is stored repeats itself, and could be of any size.
        let fits = match count {
            Some(0) => offset <= found,
            Some(count) => count <= found && last.is_some_and(|last| last < found),
            None => false,
        };
        if !fits {
            return Err(format!(
                "it has the shape {shape:?}, the strides {stride:?} and the offset {offset}, but {found} numbers are stored"
            ));
        }
        let start = range.start + offset * width;
        Ok(View { dtype, shape, stride, start })
    }
}

/// The arguments of the function that makes a tensor, which PyTorch wraps for parameters and tensors with attributes.
fn rebuilt(value: &Object, depth: usize) -> Result<&Object, String> {
    let Object::Reduce { callable, args } = value else { return Err(unknown()) };
    let Object::Class { module_name, class_name } = callable.as_ref() else { return Err(unknown()) };
    match (module_name.as_str(), class_name.as_str(), args.as_ref()) {
        ("torch._utils", "_rebuild_tensor_v2", args) => Ok(args),
        ("torch._utils", "_rebuild_parameter", Object::Tuple(parts)) if depth == 0 => {
            rebuilt(parts.first().ok_or_else(unknown)?, depth + 1)
        }
        (module, class, _) => Err(format!("it is a {}, not a tensor", quoted(&format!("{module}.{class}")))),
    }
}

fn unknown() -> String {
    "it is not a tensor as PyTorch saves them".into()
}

fn size(value: &Object) -> Result<usize, String> {
    let number = match value {
        Object::Int(number) => i64::from(*number),
        Object::Long(number) => *number,
        _ => return Err(unknown()),
    };
    usize::try_from(number).map_err(|_| format!("{number} is not a size, a stride or an offset"))
}

impl View {
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements in row-major order. What the view says was checked against the file's length.
    pub(super) fn gather<'b>(&self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        let width = self.dtype.size_in_bytes();
        let count: usize = self.shape.iter().product();
        if count == 0 {
            return Cow::Borrowed(&[]);
        }
        let mut dense = 1;
        let is_dense = self.shape.iter().zip(&self.stride).rev().all(|(n, stride)| {
            let fits = *n == 1 || *stride == dense;
            dense *= n;
            fits
        });
        if is_dense {
            return Cow::Borrowed(&bytes[self.start..self.start + count * width]);
        }
        let mut gathered = Vec::with_capacity(count * width);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..count {
            let element: usize = index.iter().zip(&self.stride).map(|(i, stride)| i * stride).sum();
            let at = self.start + element * width;
            gathered.extend_from_slice(&bytes[at..at + width]);
            for (i, n) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        Cow::Owned(gathered)
    }
}
