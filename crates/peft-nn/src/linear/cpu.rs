use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};

use super::low_rank::Change;
use super::{Linear, NAME, WeightLayout};
use crate::cpu::gemm::{ByRows, Matrix, Panels, product, product_by_rows, row_product};
use crate::cpu::{Element, Operand, column_sums, products, read, value};
use crate::graph::{Value, is_off};

/// Evaluates an expression with `$type` standing for a dtype that is computed with in f32.
macro_rules! dispatch {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $type = f32;
                $body
            }
            DType::BF16 => {
                type $type = bf16;
                $body
            }
            DType::F16 => {
                type $type = f16;
                $body
            }
            other => bail!("{NAME}: no kernel for {}", other.as_str()),
        }
    };
}

pub(super) fn forward(op: &mut Linear, bias: Option<&Tensor>) -> Result<Value> {
    dispatch!(op.dtype, T => forward_typed::<T>(op, bias))
}

/// Of x, weight, bias, a, b and mixing.
pub(super) fn backward(op: &Linear, grad: &Tensor, wanted: [bool; 6]) -> Result<[Option<Value>; 6]> {
    dispatch!(op.dtype, T => backward_typed::<T>(op, grad, wanted))
}

impl Change {
    /// `scale * x A^T M^T` of `low = x A^T`, both `(rows, r)`.
    fn scaled_and_mixed(&self, low: &[f32], rows: usize) -> Result<Vec<f32>> {
        let r = self.rank()?;
        let mut mixed = match &self.mixing {
            None => low.to_vec(),
            Some(mixing) => {
                let mut mixed = vec![0.0; rows * r];
                product(&mut mixed, &[(Matrix::of(low, rows, r), Operand::of(mixing)?.matrix()?.t())]);
                mixed
            }
        };
        scale(&mut mixed, self.scale);
        Ok(mixed)
    }
}

fn scale(values: &mut [f32], scale: f64) {
    if scale != 1.0 {
        values.iter_mut().for_each(|x| *x *= scale as f32);
    }
}

fn forward_typed<T: Element<Acc = f32>>(op: &mut Linear, bias: Option<&Tensor>) -> Result<Value> {
    let weight = op.out_in()?;
    let input = op.x()?.clone();
    let (x, weight) = (Operand::of(&input)?, Operand::of(&weight)?);
    let (x, weight) = (x.matrix()?, weight.matrix()?);
    let (rows, outputs) = (x.rows, weight.rows);
    let bias = bias.map(read).transpose()?;
    let bias = bias.as_ref().map(|bias| bias.as_slice::<T>()).transpose()?;

    let by_rows = !weight.is_column_major();
    // What a token gets in inference does not depend on how many there are.
    if by_rows && (rows == 1 || is_off()) {
        return by_row_products::<T>(op, x, weight, bias);
    }
    // Shared by the product with the weight and the one with A.
    let panels = (by_rows || op.change.is_some()).then(|| Panels::pack(x.t(), true));
    let mut mixed = Vec::new();
    if let (Some(change), Some(panels)) = (&mut op.change, &panels) {
        change.low = vec![0.0; rows * change.rank()?];
        let a = Operand::of(&change.a)?;
        product_by_rows(&mut change.low, a.matrix()?.rows, &[ByRows { x: panels, w: a.matrix()? }], None);
        mixed = change.scaled_and_mixed(&change.low, rows)?;
    }
    let b = op.change.as_ref().map(|change| Operand::of(&change.b)).transpose()?;
    let b = b.as_ref().map(Operand::matrix).transpose()?;
    let mixed = b.map(|b| Matrix::of(&mixed, rows, b.columns));

    match panels.filter(|_| by_rows) {
        Some(panels) => {
            let mut out = vec![T::zero(); rows * outputs];
            let mixed = mixed.map(|mixed| Panels::pack(mixed.t(), true));
            let mut terms = vec![ByRows { x: &panels, w: weight }];
            terms.extend(mixed.as_ref().zip(b).map(|(x, w)| ByRows { x, w }));
            product_by_rows(&mut out, outputs, &terms, bias);
            Ok(value(out, (rows, outputs)))
        }
        None => {
            let mut terms = vec![(x, weight.t())];
            terms.extend(mixed.zip(b).map(|(x, w)| (x, w.t())));
            let mut out = vec![0.0; rows * outputs];
            product(&mut out, &terms);
            if let Some(bias) = bias {
                for row in out.chunks_exact_mut(outputs) {
                    row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias.widen());
                }
            }
            rounded::<T>(out, (rows, outputs))
        }
    }
}

/// The forward pass by [`row_product`].
fn by_row_products<T: Element<Acc = f32>>(
    op: &mut Linear,
    x: Matrix<'_>,
    weight: Matrix<'_>,
    bias: Option<&[T]>,
) -> Result<Value> {
    let (rows, outputs) = (x.rows, weight.rows);
    let mut out = vec![T::zero(); rows * outputs];
    let Some(change) = &mut op.change else {
        row_product(&mut out, outputs, &[(x, weight)], bias);
        return Ok(value(out, (rows, outputs)));
    };
    let (a, b) = (Operand::of(&change.a)?, Operand::of(&change.b)?);
    let (a, b) = (a.matrix()?, b.matrix()?);
    let mut low = vec![0.0; rows * a.rows];
    row_product(&mut low, a.rows, &[(x, a)], None);
    let mixed = change.scaled_and_mixed(&low, rows)?;
    row_product(&mut out, outputs, &[(x, weight), (Matrix::of(&mixed, rows, b.columns), b)], bias);
    change.low = low;
    Ok(value(out, (rows, outputs)))
}

fn backward_typed<T: Element<Acc = f32>>(op: &Linear, grad: &Tensor, wanted: [bool; 6]) -> Result<[Option<Value>; 6]> {
    let [wants_x, wants_weight, wants_bias, wants_a, wants_b, wants_mixing] = wanted;
    let weight = op.out_in()?;
    let x = op.x.as_ref().map(Operand::of).transpose()?;
    let x = x.as_ref().map(Operand::matrix).transpose()?;
    let x = || x.ok_or_else(|| candle_core::Error::msg(format!("{NAME}: the input was not kept")));
    let (weight, grad_operand) = (Operand::of(&weight)?, Operand::of(grad)?);
    let (weight, g) = (weight.matrix()?, grad_operand.matrix()?);
    let (rows, inputs, outputs) = (g.rows, weight.columns, weight.rows);

    let dweight = if wants_weight {
        let term = match op.layout {
            WeightLayout::OutIn => (g.t(), x()?),
            WeightLayout::InOut => (x()?.t(), g),
        };
        let mut out = vec![0.0; outputs * inputs];
        product(&mut out, &[term]);
        Some(rounded::<T>(out, (term.0.rows, term.1.columns))?)
    } else {
        None
    };
    let dbias = if wants_bias {
        let grad = read(grad)?;
        let sum: Vec<T> = column_sums(grad.as_slice::<T>()?, outputs).into_iter().map(T::narrow).collect();
        Some(value(sum, outputs))
    } else {
        None
    };

    let (mut da, mut db, mut dmixing) = (None, None, None);
    let mut through_change = None;
    if let Some(change) = &op.change {
        let r = change.rank()?;
        let (a, b) = (Operand::of(&change.a)?, Operand::of(&change.b)?);
        let (a, b) = (a.matrix()?, b.matrix()?);
        if wants_b {
            let mixed = change.scaled_and_mixed(&change.low, rows)?;
            let mut out = vec![0.0; outputs * r];
            product(&mut out, &[(g.t(), Matrix::of(&mixed, rows, r))]);
            db = Some(like(&change.b, out)?);
        }
        if wants_x || wants_a || wants_mixing {
            let mut dmixed = vec![0.0; rows * r];
            product(&mut dmixed, &[(g, b)]);
            scale(&mut dmixed, change.scale);
            if wants_mixing {
                let mut out = vec![0.0; r * r];
                product(&mut out, &[(Matrix::of(&dmixed, rows, r).t(), Matrix::of(&change.low, rows, r))]);
                dmixing = change.mixing.as_ref().map(|mixing| like(mixing, out)).transpose()?;
            }
            let dlow = match &change.mixing {
                None => dmixed,
                Some(mixing) => {
                    let mut dlow = vec![0.0; rows * r];
                    product(&mut dlow, &[(Matrix::of(&dmixed, rows, r), Operand::of(mixing)?.matrix()?)]);
                    dlow
                }
            };
            if wants_a {
                let mut out = vec![0.0; r * inputs];
                product(&mut out, &[(Matrix::of(&dlow, rows, r).t(), x()?)]);
                da = Some(like(&change.a, out)?);
            }
            through_change = Some((dlow, r));
        }
        if let (true, Some((dlow, r))) = (wants_x, &through_change) {
            let dx = products::<T>(&[(g, weight), (Matrix::of(dlow, rows, *r), a)])?;
            return Ok([Some(dx), dweight, dbias, da, db, dmixing]);
        }
    }
    let dx = if wants_x { Some(products::<T>(&[(g, weight)])?) } else { None };
    Ok([dx, dweight, dbias, da, db, dmixing])
}

/// Sums in f32 as the elements of a tensor.
fn rounded<T: Element<Acc = f32>>(sums: Vec<f32>, shape: (usize, usize)) -> Result<Value> {
    value(sums, shape).into_dtype(T::DTYPE)
}

/// Sums in f32 in the shape and dtype of a tensor.
fn like(tensor: &Tensor, sums: Vec<f32>) -> Result<Value> {
    value(sums, tensor.shape()).into_dtype(tensor.dtype())
}
