//! The variables of a run.

use crate::error::{Error, Result};
use candle_core::{DType, Var};
use std::collections::HashMap;
use std::sync::Arc;

/// The named variables that a run trains, in a fixed order.
///
/// Clones are cheap and stay the same set: gradients of one clone feed an optimizer of another.
#[derive(Debug, Clone)]
pub struct Trainables(Arc<[(String, Var)]>);

impl Trainables {
    /// The set of these names and variables.
    ///
    /// # Errors
    /// On no variables at all, on a name or a variable that comes twice, and on a dtype other than f32 and f64: small
    /// updates vanish in the rounding of the shorter ones.
    pub fn new(vars: impl IntoIterator<Item = (String, Var)>) -> Result<Self> {
        let vars: Arc<[(String, Var)]> = vars.into_iter().collect();
        if vars.is_empty() {
            return Err(Error::Optimizer("there is nothing to train".to_owned()));
        }
        let (mut names, mut ids) = (HashMap::new(), HashMap::new());
        for (name, var) in vars.iter() {
            if names.insert(name, ()).is_some() {
                return Err(Error::Optimizer(format!("two variables are named `{name}`")));
            }
            if let Some(first) = ids.insert(var.id(), name) {
                return Err(Error::Optimizer(format!("`{first}` and `{name}` are the same variable")));
            }
            if !matches!(var.dtype(), DType::F32 | DType::F64) {
                let dtype = var.dtype();
                return Err(Error::Optimizer(format!("`{name}` is {dtype:?}, but only f32 and f64 can be trained")));
            }
        }
        Ok(Self(vars))
    }

    /// Names and variables in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The number of scalars in all variables.
    pub fn parameter_count(&self) -> usize {
        self.0.iter().map(|(_, var)| var.elem_count()).sum()
    }

    pub(super) fn is_same_set(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
