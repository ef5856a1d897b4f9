//! The adapters attached to one host: which are active, which are merged.

use crate::{AdapterLayer, BaseWeight, Error, HostView, LowRank, Mode, Param, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// A tensor that stands in for a host's own weight or bias while its adapter is active.
#[derive(Clone, Debug)]
pub(crate) enum Replacement {
    /// A trained copy (`modules_to_save`, or a trained bias).
    Trainable(Param),
    /// A tensor that came with the checkpoint.
    Frozen(Tensor),
}

impl Replacement {
    fn read(&self, mode: Mode) -> &Tensor {
        match self {
            Self::Trainable(param) => param.read(mode),
            Self::Frozen(tensor) => tensor,
        }
    }
}

/// All that one adapter brings to one host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attachment {
    pub(crate) layer: Option<Arc<dyn AdapterLayer>>,
    pub(crate) weight: Option<Replacement>,
    pub(crate) bias: Option<Replacement>,
}

impl Attachment {
    pub(crate) fn is_empty(&self) -> bool {
        self.layer.is_none() && self.weight.is_none() && self.bias.is_none()
    }
}

#[derive(Clone, Debug)]
struct Slot {
    adapter: Arc<str>,
    attachment: Attachment,
    active: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Merged {
    pub(crate) base: BaseWeight,
    pub(crate) bias: Option<Tensor>,
    pub(crate) adapters: Vec<Arc<str>>,
}

/// What `forward` needs, resolved whenever the set of adapters changes: no maps, locks or names on the hot path.
#[derive(Clone, Debug, Default)]
struct Live {
    layers: Vec<Arc<dyn AdapterLayer>>,
    weight: Option<Replacement>,
    bias: Option<Replacement>,
}

/// How adapters change the weight of a linear host.
#[derive(Debug)]
pub(crate) enum OnlyChange {
    /// Not at all.
    None,
    LowRank(LowRank),
    /// By several changes, or by one that is no product of small matrices or not of the weight alone.
    More,
}

/// The adapters attached to one host.
#[derive(Clone, Debug, Default)]
pub struct AdapterSlots {
    slots: Vec<Slot>,
    merged: Option<Merged>,
    mode: Mode,
    live: Live,
}

impl AdapterSlots {
    /// Computes a host's output with the active, unmerged adapters around it.
    ///
    /// `base` is what the host itself makes of its input, and `host` shows what it makes it with.
    #[inline]
    pub fn forward(
        &self,
        host: HostView<'_>,
        input: &Tensor,
        base: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        nested(&self.live.layers, 0, host, input, self.mode, base)
    }

    /// [`AdapterSlots::forward`] for a linear host. The innermost adapter and the host are one product, if the adapter is a low-rank
    /// change of the weight.
    pub fn forward_linear(&self, host: HostView<'_>, input: &Tensor) -> candle_core::Result<Tensor> {
        let layers = &self.live.layers;
        let change = match layers.first() {
            Some(innermost) => innermost.low_rank(self.mode)?,
            None => None,
        };
        // Another dtype than that of the weight is for the layer itself to convert.
        let change = change.filter(|change| change.fits(input.dtype()));
        let fused = usize::from(change.is_some());
        nested(layers, fused, host, input, self.mode, |input| host.linear(input, change.as_ref()))
    }

    /// What the active, unmerged adapters make of a linear host's weight, if that is a single low-rank change at the most.
    pub(crate) fn only_change(&self) -> candle_core::Result<OnlyChange> {
        Ok(match self.live.layers.as_slice() {
            [] => OnlyChange::None,
            [layer] => layer.low_rank(self.mode)?.map_or(OnlyChange::More, OnlyChange::LowRank),
            _ => OnlyChange::More,
        })
    }

    /// The weight that replaces the host's own, in the layout of the host's own, if an active adapter brings one.
    #[inline]
    pub fn weight(&self) -> Option<&Tensor> {
        self.live.weight.as_ref().map(|w| w.read(self.mode))
    }

    /// The bias that replaces the host's own, if an active adapter brings one.
    #[inline]
    pub fn bias(&self) -> Option<&Tensor> {
        self.live.bias.as_ref().map(|b| b.read(self.mode))
    }

    /// Whether active, unmerged adapters change what the host computes.
    pub fn is_live(&self) -> bool {
        !self.live.layers.is_empty() || self.live.weight.is_some() || self.live.bias.is_some()
    }

    /// Whether adapters are folded into the base weight.
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// Whether forward passes are differentiated.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The adapters that this host has a part of, in the order they were attached.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|s| &*s.adapter)
    }

    /// The layer of one adapter at this host.
    pub fn layer(&self, adapter: &str) -> Option<&Arc<dyn AdapterLayer>> {
        self.slots.iter().find(|s| &*s.adapter == adapter)?.attachment.layer.as_ref()
    }

    /// The weight and bias that one adapter puts in place of the host's, as tensors without a graph.
    pub(crate) fn replaced_by(&self, adapter: &str) -> (Option<Tensor>, Option<Tensor>) {
        let slot = self.slots.iter().find(|s| &*s.adapter == adapter);
        slot.map_or((None, None), |s| (read(&s.attachment.weight), read(&s.attachment.bias)))
    }

    pub(crate) fn attach(&mut self, adapter: Arc<str>, attachment: Attachment) {
        if !attachment.is_empty() {
            self.slots.push(Slot { adapter, attachment, active: false });
        }
    }

    /// Puts another attachment in the place of an adapter's own, and leaves it inactive.
    ///
    /// `earlier` are the adapters that were attached to the model before this one: they stay further in.
    pub(crate) fn replace(&mut self, adapter: &Arc<str>, attachment: Attachment, earlier: &[Arc<str>]) {
        self.slots.retain(|s| s.adapter != *adapter);
        if !attachment.is_empty() {
            let place = self.slots.iter().take_while(|s| earlier.contains(&s.adapter)).count();
            self.slots.insert(place, Slot { adapter: adapter.clone(), attachment, active: false });
        }
    }

    pub(crate) fn detach(&mut self, adapter: &str) {
        self.slots.retain(|s| &*s.adapter != adapter);
        self.resolve();
    }

    /// Two adapters of this set that both replace the same parameter cannot be active together.
    pub(crate) fn check_active_set(&self, path: &str, adapters: &[&str]) -> Result<()> {
        check_replacements(path, self.attached(adapters))
    }

    /// As [`AdapterSlots::check_active_set`], as if `adapter`, one of the set, had this attachment in place of its own.
    pub(crate) fn check_replaced(&self, path: &str, adapters: &[&str], adapter: &str, with: &Attachment) -> Result<()> {
        check_replacements(path, self.attached(adapters).filter(|(name, _)| *name != adapter).chain([(adapter, with)]))
    }

    /// What these adapters bring to this host, in the order they were attached.
    fn attached(&self, adapters: &[&str]) -> impl Iterator<Item = (&str, &Attachment)> + Clone {
        self.slots.iter().filter(|s| adapters.contains(&&*s.adapter)).map(|s| (&*s.adapter, &s.attachment))
    }

    pub(crate) fn activate(&mut self, adapters: &[&str]) {
        for slot in &mut self.slots {
            slot.active = adapters.contains(&&*slot.adapter);
        }
        self.resolve();
    }

    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub(crate) fn reseed(&self, seed: u64) {
        for slot in &self.slots {
            if let Some(layer) = &slot.attachment.layer {
                layer.reseed(seed);
            }
        }
    }

    pub(crate) fn set_merged(&mut self, merged: Merged) {
        self.merged = Some(merged);
        self.resolve();
    }

    pub(crate) fn take_merged(&mut self) -> Option<Merged> {
        let merged = self.merged.take();
        self.resolve();
        merged
    }

    pub(crate) fn merged(&self) -> Option<&Merged> {
        self.merged.as_ref()
    }

    /// Removes every adapter and forgets the weight from before a merge.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The active adapters that are not merged yet, with what they bring.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&Arc<str>, &Attachment)> {
        let merged = self.merged.as_ref().map(|m| m.adapters.as_slice()).unwrap_or_default();
        self.slots.iter().filter(|s| s.active && !merged.contains(&s.adapter)).map(|s| (&s.adapter, &s.attachment))
    }

    /// The replaced weight and bias as tensors without a graph.
    pub(crate) fn replaced(&self) -> (Option<Tensor>, Option<Tensor>) {
        (read(&self.live.weight), read(&self.live.bias))
    }

    fn resolve(&mut self) {
        let mut live = Live::default();
        for (_, attachment) in self.pending() {
            live.layers.extend(attachment.layer.clone());
            live.weight = attachment.weight.clone().or(live.weight);
            live.bias = attachment.bias.clone().or(live.bias);
        }
        self.live = live;
    }
}

/// No two of these may replace the same parameter.
fn check_replacements<'a>(path: &str, attached: impl Iterator<Item = (&'a str, &'a Attachment)> + Clone) -> Result<()> {
    type Pick = fn(&Attachment) -> bool;
    let replaced: [(&'static str, Pick); 2] = [("weight", |a| a.weight.is_some()), ("bias", |a| a.bias.is_some())];
    for (what, has) in replaced {
        let mut by = attached.clone().filter(|(_, attachment)| has(attachment));
        if let (Some((first, _)), Some((second, _))) = (by.next(), by.next()) {
            let (first, second, path) = (first.to_owned(), second.to_owned(), path.to_owned());
            return Err(Error::ConflictingReplacement { first, second, what, path });
        }
    }
    Ok(())
}

/// A replacement as a tensor without a graph.
fn read(replacement: &Option<Replacement>) -> Option<Tensor> {
    replacement.as_ref().map(|r| r.read(Mode::Infer).clone())
}

/// The last layer is the outermost: it sees the input first and the output last. `base` includes the first `done` layers.
fn nested(
    layers: &[Arc<dyn AdapterLayer>],
    done: usize,
    host: HostView<'_>,
    input: &Tensor,
    mode: Mode,
    base: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let Some((outer, inner)) = layers.split_last().filter(|_| layers.len() > done) else { return base(input) };
    let output = nested(inner, done, host, &outer.input(input, mode)?, mode, base)?;
    outer.forward(host.after(inner), input, output, mode)
}
