//! Finding the leading right singular vectors, and how sure it is that none was overlooked.

use super::lanczos::{BLOCK, Lanczos};
use super::panel::Panel;
use super::ritz::Ritz;
use crate::Result;

/// Residuals, as a part of the largest singular value, that the iteration ends at.
const CONVERGED: f64 = 3e-7;
/// Products in f32 show singular values from this part of the largest on: smaller squares drown in rounding.
const NARROW: f64 = 0.05;
/// Found singular values closer than this part of the largest may be one repeated value.
const EQUAL: f64 = 1e-4;
/// The probability with which a search may overlook a singular vector.
const OVERLOOKED: f64 = 1e-6;
/// Searches from fresh starts in the complement of what was found, at the most.
const ROUNDS: usize = 12;
/// The part of the smaller side of the matrix that the dimension of a space may reach: then a full decomposition is cheaper.
const DIMENSION: f64 = 0.75;

/// The leading right singular vectors of a matrix.
pub(super) struct Found {
    /// One vector after the other.
    pub(super) vectors: Vec<f64>,
    /// Their singular values, in descending order.
    pub(super) values: Vec<f64>,
    /// The probability that a larger one was overlooked.
    pub(super) overlooked: f64,
    /// The space of the first search and its eigenpairs.
    pub(super) lanczos: Lanczos<'static>,
    pub(super) ritz: Ritz,
}

/// How the squared matrix is multiplied.
#[derive(Clone, Copy, PartialEq)]
enum Products {
    F32,
    F64,
}

impl Products {
    /// The error, as a part of the squared largest singular value.
    fn noise(self) -> f64 {
        match self {
            Self::F32 => 1e-7,
            Self::F64 => 1e-15,
        }
    }

    fn multiply(self, panel: &Panel<'_>, block: &[f64]) -> Vec<f64> {
        match self {
            Self::F32 => panel.gram_f32(block),
            Self::F64 => panel.gram_f64(block),
        }
    }
}

/// The leading `r` right singular vectors; nothing when they do not converge in a space of moderate dimension, or when the
/// probability that one was overlooked stays too large.
///
/// A singular value above the last one by less than `tolerance`, as a part of the largest, does not count as overlooked.
pub(super) fn leading(panel: &Panel<'_>, r: usize, tolerance: f64) -> Result<Option<Found>> {
    let mut products = Products::F32;
    let (lanczos, ritz) = loop {
        let mut lanczos = Lanczos::new(panel.cols, &[], 0, panel.shared());
        let narrow = |ritz: &Ritz| products == Products::F32 && ritz.singular(r - 1) < NARROW * ritz.singular(0);
        let excess = |lanczos: &Lanczos<'_>, ritz: &Ritz| {
            if narrow(ritz) {
                return 0.0;
            }
            let odds = Odds::new(lanczos, ritz, &ritz.singulars(r), r, products.noise(), tolerance);
            unconverged(ritz, r, ritz.singular(0)).max(odds.excess)
        };
        let Some(ritz) = converge(&mut lanczos, panel, products, 8 + r / 2, excess)? else {
            return Ok(None);
        };
        if !narrow(&ritz) {
            break (lanczos, ritz);
        }
        products = Products::F64;
    };
    let values = ritz.singulars(r);
    let overlooked = Odds::new(&lanczos, &ritz, &values, r, products.noise(), tolerance).probability;
    let mut found = Found { vectors: ritz.combine(&lanczos, r), values, overlooked, lanczos, ritz };
    if found.overlooked > OVERLOOKED {
        if rest_is_small(panel, &found.values, products, tolerance) {
            found.overlooked = 0.0;
        } else if !search_rest(panel, &mut found, products, tolerance)? {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// Searches the complement of what was found until nothing larger turns up; whether that is sure enough.
///
/// Products in f32 are tried first if what was found came from such.
fn search_rest(panel: &Panel<'_>, found: &mut Found, mut products: Products, tolerance: f64) -> Result<bool> {
    let r = found.values.len();
    for round in 1..=ROUNDS {
        let locked = std::mem::take(&mut found.vectors);
        let mut lanczos = Lanczos::new(panel.cols, &locked, round as u64, panel.shared());
        let values = &found.values;
        let limit = values[r - 1] + tolerance * values[0];
        let larger =
            |ritz: &Ritz| (0..r.min(ritz.values.len())).take_while(|pair| ritz.singular(*pair) > limit).count();
        let odds =
            |lanczos: &Lanczos<'_>, ritz: &Ritz| Odds::new(lanczos, ritz, values, 0, products.noise(), tolerance);
        let excess = |lanczos: &Lanczos<'_>, ritz: &Ritz| match larger(ritz) {
            0 => odds(lanczos, ritz).excess,
            larger => unconverged(ritz, larger, values[0]),
        };
        let Some(ritz) = converge(&mut lanczos, panel, products, 2, excess)? else {
            return Ok(false);
        };
        let larger = larger(&ritz);
        if larger == 0 {
            found.overlooked = odds(&lanczos, &ritz).probability;
            found.vectors = locked;
            match (found.overlooked <= OVERLOOKED, products) {
                (false, Products::F32) => products = Products::F64,
                (sure, _) => return Ok(sure),
            }
            continue;
        }
        let new = ritz.combine(&lanczos, larger);
        let vectors = locked.chunks(panel.cols).chain(new.chunks(panel.cols));
        let mut pairs: Vec<(f64, &[f64])> =
            found.values.iter().copied().chain(ritz.singulars(larger)).zip(vectors).collect();
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        pairs.truncate(r);
        found.vectors = pairs.iter().flat_map(|(_, vector)| *vector).copied().collect();
        found.values = pairs.iter().map(|(value, _)| *value).collect();
    }
    Ok(false)
}

/// Grows a space until its eigenpairs are good enough: `excess` says how many times too large their error is.
///
/// Nothing is returned when the space would grow too large.
fn converge(
    lanczos: &mut Lanczos<'_>,
    panel: &Panel<'_>,
    products: Products,
    first: usize,
    excess: impl Fn(&Lanczos<'_>, &Ritz) -> f64,
) -> Result<Option<Ritz>> {
    let limit = (DIMENSION * panel.rows.min(panel.cols) as f64) as usize;
    let (mut step, mut next) = (0, first);
    let mut before: Option<(usize, f64)> = None;
    while lanczos.size() + BLOCK <= limit {
        lanczos.extend(|block| products.multiply(panel, block));
        step += 1;
        if step < next {
            continue;
        }
        let ritz = lanczos.ritz()?;
        let error = excess(lanczos, &ritz);
        if error <= 1.0 {
            return Ok(Some(ritz));
        }
        // Errors fall geometrically once they fall, and faster as the space grows. To look takes about as long as a few steps.
        let rate = before.map_or(0.0, |(step_before, before)| (before / error).ln() / (step - step_before) as f64);
        let forecast = if rate > 0.0 { (error.ln() / rate).ceil() } else { f64::INFINITY };
        let steps = if forecast <= 4.0 { forecast } else { 4f64.max((0.85 * forecast).min((step / 2) as f64)) };
        next = step + 1.max(steps as usize);
        before = Some((step, error));
    }
    Ok(None)
}

/// How many times too large the residuals of the first pairs are; `largest` is the largest singular value.
fn unconverged(ritz: &Ritz, count: usize, largest: f64) -> f64 {
    let excess = |pair| {
        let residual = ritz.residual(pair);
        // Below this size the singular value itself is within the residual that is asked for.
        let value = ritz.singular(pair).max(CONVERGED * largest);
        if residual == 0.0 { 0.0 } else { residual / (CONVERGED * value * largest) }
    };
    (0..count).map(excess).fold(0.0, f64::max)
}

/// Whether everything but the found triplets together is smaller than the last of them: then none can have been overlooked.
fn rest_is_small(panel: &Panel<'_>, values: &[f64], products: Products, tolerance: f64) -> bool {
    let limit = values[values.len() - 1] + tolerance * values[0];
    let found: f64 = values.iter().map(|s| s * s).sum();
    // The found vectors are off by the error of the products.
    let error = 10.0 * products.noise() * values[0] * values[0] * values.len() as f64;
    panel.square() - found + error <= limit * limit
}

/// The odds that a singular vector was overlooked.
struct Odds {
    probability: f64,
    /// How many times too large the part of it is that falls as the space grows.
    excess: f64,
}

impl Odds {
    /// For a space in which the first `found` pairs were found, where `values` are the singular values known so far.
    ///
    /// An overlooked vector has a tiny component along the start block ([`Ritz::overlooked`]), though the block is random. How unlikely
    /// that is depends on the vector being fixed before the block was drawn. It is, unless its singular value is that of a found vector:
    /// the copies that were found are then those that the block happened to contain, and the overlooked ones are chosen orthogonal to
    /// them. With `m` copies found, the `m + 1` components of the block in their space would have to be linearly dependent.
    fn new(lanczos: &Lanczos<'_>, ritz: &Ritz, values: &[f64], found: usize, noise: f64, tolerance: f64) -> Self {
        let (largest, last) = (values[0], values[values.len() - 1]);
        let limit = last + tolerance * largest;
        let equal = |value: f64| move |other: &&f64| (**other - value).abs() <= EQUAL * largest;
        // Either a value of its own above the limit, or one of those found.
        let new = std::iter::once((limit, 0));
        let above = values[..found].iter().filter(|value| **value > limit);
        let copies =
            above.map(|value| (limit.max(value - EQUAL * largest), values.iter().filter(equal(*value)).count()));
        let (mut probability, mut falling_part) = (0.0, 0.0);
        for (bound, copies) in new.chain(copies) {
            let (falling, staying) = ritz.overlooked(found, bound * bound, noise * largest * largest);
            let chance = chance((falling + staying) * lanczos.start_norm(), copies);
            probability += chance;
            falling_part += if copies < BLOCK && falling > staying { chance } else { 0.0 };
        }
        Self { probability, excess: (falling_part / OVERLOOKED).powf(1.0 / BLOCK as f64) }
    }
}

/// An upper bound of the probability that `copies + 1` vectors of [`BLOCK`] normal numbers each are dependent up to `size`.
///
/// The smallest singular value of the matrix of `m` such vectors is at least the distance of some vector from the span of the others,
/// over the square root of `m`. That distance is the length of a vector of `BLOCK - m + 1` normal numbers, so it is below `t` with a
/// probability of at most `t^q / c(q)`, the volume of a ball times the largest density.
fn chance(size: f64, copies: usize) -> f64 {
    if copies >= BLOCK {
        return 1.0;
    }
    let (free, vectors) = ((BLOCK - copies) as i32, (copies + 1) as f64);
    let inverse_volume = |q: i32| -> f64 {
        let first = if q % 2 == 0 { 1.0 } else { std::f64::consts::FRAC_PI_2.sqrt() };
        (1..=q).rev().step_by(2).take_while(|k| *k > 1).map(f64::from).product::<f64>() * first
    };
    (vectors * (vectors.sqrt() * size).powi(free) / inverse_volume(free)).min(1.0)
}
