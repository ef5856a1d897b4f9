//! Factors of base models: the user's cache of them, and what is shown while they are made.

use crate::args::FactorArgs;
use candle_peft::PeftModel;
use candle_peft::core::{DecompositionProgress, FactorCache};
use candle_peft::models::CausalLm;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::sync::{Mutex, PoisonError};

const TEMPLATE: &str = "decomposing weights [{bar:30}] {pos}/{len} {eta}";

impl FactorArgs {
    /// The model with the user's cache, unless it is turned off, and a bar.
    pub(crate) fn on(&self, model: PeftModel<CausalLm>) -> PeftModel<CausalLm> {
        let cache = if self.no_factor_cache { None } else { FactorCache::of_user() };
        let bar = Bar::default();
        let model = model.with_decomposition_progress(move |progress| bar.advance(progress));
        cache.into_iter().fold(model, PeftModel::with_factor_cache)
    }
}

/// A bar on standard error where that is a terminal, from the first weight that is decomposed to the last one.
#[derive(Debug, Default)]
struct Bar {
    /// It, and how many weights it has seen.
    shown: Mutex<Option<(ProgressBar, usize)>>,
}

impl Bar {
    fn advance(&self, progress: DecompositionProgress<'_>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (bar, seen) = shown.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.total as u64).with_finish(ProgressFinish::AndClear);
            (bar.with_style(style.progress_chars("=> ")), 0)
        });
        bar.inc(1);
        *seen += 1;
        // Calls may overtake each other, so the last of them need not be that of the last weight.
        if *seen == progress.total {
            bar.finish_and_clear();
            *shown = None;
        }
    }
}
