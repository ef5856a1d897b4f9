//! Walking a model's hosts by path.

use crate::{Host, Result};

/// A tree of hosts, such as a model or one of its blocks. Object safe; implement it with [`adaptable!`](crate::adaptable).
///
/// The order of the visit is a promise: it must equal the order of PyTorch's `named_modules()` for the same architecture,
/// because TinyLoRA seeds its projections and ties its vectors by position.
pub trait Adaptable {
    /// Shows every host below this node, in order.
    fn visit(&self, walk: &mut Walk<'_>) -> Result<()>;

    /// Shows every host below this node, in order, to be changed.
    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> Result<()>;

    /// The `model_type` of `config.json`, which decides the targets when a config names none.
    fn model_type(&self) -> Option<&str> {
        None
    }
}

/// A walk over hosts that only looks.
pub struct Walk<'a> {
    path: String,
    each: &'a mut dyn FnMut(&str, &dyn Host) -> Result<()>,
}

/// A walk over hosts that may change them.
pub struct WalkMut<'a> {
    path: String,
    each: &'a mut dyn FnMut(&str, &mut dyn Host) -> Result<()>,
}

fn nested<W, R>(walk: &mut W, path: fn(&mut W) -> &mut String, name: &str, go: impl FnOnce(&mut W) -> R) -> R {
    let len = path(walk).len();
    if len > 0 {
        path(walk).push('.');
    }
    path(walk).push_str(name);
    let out = go(walk);
    path(walk).truncate(len);
    out
}

impl<'a> Walk<'a> {
    /// A walk that shows each host with its path to `each`.
    pub fn new(each: &'a mut dyn FnMut(&str, &dyn Host) -> Result<()>) -> Self {
        Self { path: String::new(), each }
    }

    /// Descends into a named child.
    pub fn child(&mut self, name: &str, child: &dyn Adaptable) -> Result<()> {
        nested(self, |w| &mut w.path, name, |w| child.visit(w))
    }

    /// Shows a host at the current path.
    pub fn host(&mut self, host: &dyn Host) -> Result<()> {
        (self.each)(&self.path, host)
    }
}

impl<'a> WalkMut<'a> {
    /// A walk that shows each host with its path to `each`.
    pub fn new(each: &'a mut dyn FnMut(&str, &mut dyn Host) -> Result<()>) -> Self {
        Self { path: String::new(), each }
    }

    /// Descends into a named child.
    pub fn child(&mut self, name: &str, child: &mut dyn Adaptable) -> Result<()> {
        nested(self, |w| &mut w.path, name, |w| child.visit_mut(w))
    }

    /// Shows a host at the current path.
    pub fn host(&mut self, host: &mut dyn Host) -> Result<()> {
        (self.each)(&self.path, host)
    }
}

impl<T: Adaptable> Adaptable for Vec<T> {
    fn visit(&self, walk: &mut Walk<'_>) -> Result<()> {
        self.iter().enumerate().try_for_each(|(i, child)| walk.child(&i.to_string(), child))
    }

    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> Result<()> {
        self.iter_mut().enumerate().try_for_each(|(i, child)| walk.child(&i.to_string(), child))
    }
}

impl<T: Adaptable> Adaptable for Option<T> {
    fn visit(&self, walk: &mut Walk<'_>) -> Result<()> {
        self.as_ref().map_or(Ok(()), |child| child.visit(walk))
    }

    fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> Result<()> {
        self.as_mut().map_or(Ok(()), |child| child.visit_mut(walk))
    }
}

/// Implements [`Host`]'s visit for leaf types: the host shows itself.
macro_rules! leaf {
    ($($host:ty),* $(,)?) => {$(
        impl Adaptable for $host {
            fn visit(&self, walk: &mut Walk<'_>) -> Result<()> {
                walk.host(self)
            }

            fn visit_mut(&mut self, walk: &mut WalkMut<'_>) -> Result<()> {
                walk.host(self)
            }
        }
    )*};
}

leaf!(crate::nn::Linear, crate::nn::Embedding, crate::nn::RmsNorm, crate::nn::LayerNorm);

/// Implements [`Adaptable`](crate::Adaptable) for a struct by listing the fields to visit, in order.
///
/// `field as "name"` gives a child another name than its field; `: "llama"` after the type sets `model_type`.
///
/// ```
/// use peft_core::{adaptable, nn::Linear};
///
/// struct Mlp {
///     up: Linear,
///     down: Linear,
/// }
/// adaptable!(Mlp { up as "up_proj", down as "down_proj" });
///
/// struct Model {
///     layers: Vec<Mlp>,
/// }
/// adaptable!(Model: "my_model" { layers });
/// ```
#[macro_export]
macro_rules! adaptable {
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
    ($ty:ty { $($field:ident $(as $name:literal)?),* $(,)? }) => {
        $crate::adaptable!(@impl $ty [] { $($field $(as $name)?),* });
    };
    ($ty:ident : $model_type:literal { $($field:ident $(as $name:literal)?),* $(,)? }) => {
        $crate::adaptable!(@impl $ty [fn model_type(&self) -> Option<&str> { Some($model_type) }] { $($field $(as $name)?),* });
    };
    (@impl $ty:ty [$($extra:tt)*] { $($field:ident $(as $name:literal)?),* }) => {
        impl $crate::Adaptable for $ty {
            fn visit(&self, walk: &mut $crate::Walk<'_>) -> $crate::Result<()> {
                $( walk.child($crate::adaptable!(@name $field $($name)?), &self.$field)?; )*
                Ok(())
            }

            fn visit_mut(&mut self, walk: &mut $crate::WalkMut<'_>) -> $crate::Result<()> {
                $( walk.child($crate::adaptable!(@name $field $($name)?), &mut self.$field)?; )*
                Ok(())
            }

            $($extra)*
        }
    };
}
