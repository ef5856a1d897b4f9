//! Results do not depend on the number of threads.

use candle_core::{DType, Device, Result, Tensor, Var};
use peft_nn::{
    IGNORE_INDEX, LowRank, OutputHead, WeightLayout, add, cross_entropy, embedding, gelu, gelu_new, layer_norm,
    mul_frozen, rms_norm, rope, softmax_last_dim, swiglu,
};
use rayon::ThreadPoolBuilder;

use crate::support::{assert_same_bits, random};

/// The output and the gradients of the inputs.
fn run(inputs: &[Tensor], f: &(impl Fn(&[Tensor]) -> Result<Tensor> + Sync)) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = f(&tracked)?;
    let probe = random(output.shape(), 9).to_dtype(output.dtype())?;
    let grads = (&output * probe)?.sum_all()?.backward()?;
    Ok(vars.iter().map(|var| grads.get(var).unwrap().clone()).chain([output]).collect())
}

/// Compares one thread with three.
#[track_caller]
fn check(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    for dtype in [DType::F32, DType::BF16] {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(dtype).unwrap()).collect();
        let with_threads = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&inputs, &f).unwrap())
        };
        for (one, three) in with_threads(1).iter().zip(&with_threads(3)) {
            assert_same_bits(one, three);
        }
    }
}

/// So many elements that they are divided among threads, in rows of odd lengths.
#[test]
fn one_thread_or_three() {
    let (rows, width) = (301, 391);
    let x = random((rows, width), 1);
    let y = random((rows, width), 2);
    let (weight, bias) = (random(width, 3), random(width, 4));
    let both = [x.clone(), y.clone()];
    check(&both, |v| add(&v[0], &v[1]));
    check(&both, |v| swiglu(&v[0], &v[1]));
    check(&both[..1], |v| mul_frozen(&v[0], &y.to_dtype(v[0].dtype())?));
    check(&both[..1], |v| gelu(&v[0]));
    check(&both[..1], |v| gelu_new(&v[0]));
    check(&both[..1], |v| softmax_last_dim(&v[0]));
    check(&[x.clone(), weight.clone()], |v| rms_norm(&v[0], &v[1], 1e-5));
    check(&[x.clone(), weight, bias], |v| layer_norm(&v[0], &v[1], Some(&v[2]), 1e-5));
    let angles = random((50, 32), 5).to_dtype(DType::F32).unwrap();
    check(&[random((1, 7, 50, 64), 6)], |v| rope(&v[0], &angles.cos()?, &angles.sin()?));
    let ids: Vec<u32> = (0..500).map(|i| i * i % rows as u32).collect();
    let ids = Tensor::from_vec(ids, 500, &Device::Cpu).unwrap();
    check(&both[..1], |v| embedding(&ids, &v[0]));
    let labels: Vec<i64> = (0..rows as i64).map(|i| if i % 5 == 0 { IGNORE_INDEX } else { i }).collect();
    let labels = Tensor::from_vec(labels, rows, &Device::Cpu).unwrap();
    check(&both[..1], |v| cross_entropy(&v[0], &labels, IGNORE_INDEX)?.mean());
    // Read in two pieces, and whole where b is tracked.
    let weight = random((5000, width), 7);
    let (a, b, mixing) = (random((2, width), 8), random((5000, 2), 9), random((2, 2), 10));
    let head = |v: &Tensor, [a, b, mixing]: [&Tensor; 3], entropies: bool| {
        let (weight, own) = (weight.to_dtype(v.dtype())?, |t: &Tensor| t.to_dtype(v.dtype()));
        let change = LowRank::new(own(a)?, own(b)?).with_mixing(own(mixing)?);
        let head = OutputHead::new(&weight, WeightLayout::OutIn).with_low_rank(Some(&change)).with_entropies();
        let losses = head.cross_entropy(v, &labels, IGNORE_INDEX)?;
        let entropies = losses.entropies().filter(|_| entropies).cloned();
        Ok(entropies.unwrap_or_else(|| losses.per_token().clone()))
    };
    check(&[x.clone(), a.clone(), mixing.clone()], |v| head(&v[0], [&v[1], &b, &v[2]], false));
    check(&[x.clone(), a.clone(), b.clone()], |v| head(&v[0], [&v[1], &v[2], &mixing], false));
    check(&[], |_| head(&x, [&a, &b, &mixing], true));
}
