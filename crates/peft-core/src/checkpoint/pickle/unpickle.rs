//! From a pickle to plain values, by candle's reader, one operation at a time.
//!
//! The reader trusts its input: it allocates the length that a string is said to have, copies what is remembered as often as it is
//! recalled (a few bytes can double a value thirty times over), nests values as deep as it is told (they are dropped recursively),
//! and forgets what some operations were given. Each operation is looked at before it is handed over.

use candle_core::pickle::{Object, OpCode, Stack};
use std::collections::HashMap;

/// The longest program that is read. One tensor takes some 200 bytes.
const LONGEST: usize = 16 << 20;

/// How deep values may nest. A tensor in a dictionary is 5 deep.
const DEEPEST: usize = 24;

/// How many bytes the values made and copied may take.
const LARGEST: usize = 512 << 20;

/// How many values may be looked at while doing so.
const LONGEST_WALK: usize = 1 << 26;

/// Bytes that a value takes besides those of its text.
const VALUE: usize = 64;

/// The value that a pickle stands for.
pub(super) fn unpickle(mut rest: &[u8]) -> Result<Object, String> {
    if rest.len() > LONGEST {
        return Err(format!("its pickle is {} bytes long; more than {LONGEST} are not read", rest.len()));
    }
    let mut stack = Stack::empty();
    let mut limits = Limits::default();
    loop {
        let operation = *rest.first().ok_or("its pickle was cut short")?;
        limits.check(operation, &rest[1..], stack.stack())?;
        if stack.read(&mut rest).map_err(|e| said(&e))? {
            return stack.finalize().map_err(|e| said(&e));
        }
    }
}

/// An error of the reader, which may print a whole value.
fn said(error: &candle_core::Error) -> String {
    let text = error.to_string();
    format!(
        "its pickle cannot be read: {}",
        text.lines().next().unwrap_or_default().chars().take(120).collect::<String>()
    )
}

#[derive(Default)]
struct Limits {
    /// Bytes of each remembered value.
    remembered: HashMap<u32, usize>,
    made: usize,
    walked: usize,
}

impl Limits {
    /// Refuses an operation that would cost too much or lose something; `arguments` follow it in the program.
    fn check(&mut self, operation: u8, arguments: &[u8], stack: &[Object]) -> Result<(), String> {
        let unsupported =
            || format!("its pickle has the operation {operation:#04x}, which files of tensors have no use for");
        let cut = || "its pickle was cut short".to_owned();
        // The reader takes a dictionary made from the stack for an empty one.
        let code = OpCode::try_from(operation).ok().filter(|_| operation != b'd').ok_or_else(unsupported)?;
        self.make(VALUE)?;
        let top = stack.last();
        match code {
            OpCode::BinUnicode => {
                let length = number(arguments, 4).ok_or_else(cut)? as usize;
                if length > arguments.len() - 4 {
                    return Err(cut());
                }
                self.make(length)?;
            }
            OpCode::Long1 => {
                let length = usize::from(*arguments.first().ok_or_else(cut)?);
                let last = arguments.get(length).ok_or_else(cut)?;
                // The reader has 8 bytes, and no sign for fewer.
                if length > 8 || (length > 0 && last & 0x80 != 0) {
                    return Err("its pickle has an integer that is negative or longer than 64 bits".into());
                }
            }
            OpCode::BinPut | OpCode::LongBinPut => {
                let id = number(arguments, if code == OpCode::BinPut { 1 } else { 4 }).ok_or_else(cut)?;
                let size = top.map_or(Ok(0), |value| self.weigh(value, 0))?;
                self.make(size)?;
                self.remembered.insert(id, size);
            }
            OpCode::BinGet | OpCode::LongBinGet => {
                let id = number(arguments, if code == OpCode::BinGet { 1 } else { 4 }).ok_or_else(cut)?;
                self.make(self.remembered.get(&id).copied().unwrap_or(0))?;
            }
            OpCode::Reduce => {
                self.nest(last(stack, 2))?;
                let [.., Object::Class { module_name, class_name }, given] = stack else { return Ok(()) };
                // The reader makes an empty dictionary of these, whatever they are given.
                let dictionary =
                    module_name == "collections" && ["OrderedDict", "defaultdict"].contains(&class_name.as_str());
                if dictionary && *given != Object::Tuple(vec![]) {
                    return Err(format!("its pickle makes a `{class_name}` of something; only empty ones are read"));
                }
            }
            OpCode::Append => self.fill(stack, 1, false)?,
            OpCode::SetItem => self.fill(stack, 2, true)?,
            OpCode::Appends => self.fill(stack, above_mark(stack), false)?,
            OpCode::SetItems => self.fill(stack, above_mark(stack), true)?,
            OpCode::Tuple => self.nest(last(stack, above_mark(stack)))?,
            OpCode::Tuple1 | OpCode::BinPersId => self.nest(last(stack, 1))?,
            OpCode::Tuple2 | OpCode::NewObj | OpCode::Build => self.nest(last(stack, 2))?,
            OpCode::Tuple3 => self.nest(last(stack, 3))?,
            _ => {}
        }
        Ok(())
    }

    /// Values at the end of the stack that are put into a list or a dictionary below them; the reader prints what is neither.
    fn fill(&mut self, stack: &[Object], values: usize, dictionary: bool) -> Result<(), String> {
        self.nest(last(stack, values))?;
        let below = stack[..stack.len().saturating_sub(values)].iter().rfind(|value| **value != Object::Mark);
        match (below, dictionary) {
            (Some(Object::Dict(_)), true) | (Some(Object::List(_)), false) => Ok(()),
            _ => Err("its pickle cannot be read: it adds to what is no list or dictionary".into()),
        }
    }

    /// Values that become parts of another.
    fn nest(&mut self, values: &[Object]) -> Result<(), String> {
        values.iter().try_for_each(|value| self.weigh(value, 1).map(drop))
    }

    /// The bytes that a value takes.
    fn weigh(&mut self, value: &Object, depth: usize) -> Result<usize, String> {
        self.walked += 1;
        if depth > DEEPEST {
            return Err(format!("its pickle nests values more than {DEEPEST} deep"));
        }
        if self.walked > LONGEST_WALK {
            return Err("its pickle is more complicated than a file of tensors can be".into());
        }
        let inside = match value {
            Object::Class { module_name, class_name } => module_name.len() + class_name.len(),
            Object::Unicode(text) => text.len(),
            Object::Tuple(values) | Object::List(values) => self.weigh_all(values.iter(), depth)?,
            Object::Dict(pairs) => self.weigh_all(pairs.iter().flat_map(|(key, value)| [key, value]), depth)?,
            Object::Reduce { callable, args } | Object::Build { callable, args } => {
                self.weigh_all([callable.as_ref(), args.as_ref()], depth)?
            }
            Object::PersistentLoad(value) => self.weigh_all([value.as_ref()], depth)?,
            Object::Int(_) | Object::Long(_) | Object::Float(_) | Object::Bool(_) | Object::None | Object::Mark => 0,
        };
        Ok(VALUE + inside)
    }

    fn weigh_all<'v>(&mut self, values: impl IntoIterator<Item = &'v Object>, depth: usize) -> Result<usize, String> {
        let mut sum = 0;
        for value in values {
            sum += self.weigh(value, depth + 1)?;
        }
        Ok(sum)
    }

    fn make(&mut self, bytes: usize) -> Result<(), String> {
        self.made = self.made.saturating_add(bytes);
        if self.made > LARGEST {
            return Err(format!("its pickle makes values of more than {} MiB", LARGEST >> 20));
        }
        Ok(())
    }
}

/// The end of the stack.
fn last(stack: &[Object], values: usize) -> &[Object] {
    &stack[stack.len().saturating_sub(values)..]
}

/// How many values lie above the last mark.
fn above_mark(stack: &[Object]) -> usize {
    stack.iter().rev().take_while(|value| **value != Object::Mark).count()
}

/// A little-endian number of 1 or 4 bytes.
fn number(bytes: &[u8], length: usize) -> Option<u32> {
    let bytes = bytes.get(..length)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}
