use candle_core::{DType, Device};
use candle_peft::models::load_model;
use candle_peft::tinylora::TinyLoraConfig;
use candle_peft::train::accuracy::AccuracyOptions;
use candle_peft::train::data::Encoder;
use candle_peft::train::grpo::*;
use candle_peft::train::task::Task;
use candle_peft::train::tokenizer::Tokenizer;
use candle_peft::{ModuleNames, PeftModel, TargetSpec, TinyLlama};
fn main() -> anyhow::Result<()> {
    let a: Vec<f64> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (u, lr, steps, prompts, group, seed, r) =
        (a[0] as usize, a[1], a[2] as u64, a[3] as usize, a[4] as usize, a[5] as u64, a[6] as usize);
    let tiny = TinyLlama::unpack()?;
    let tokenizer = Tokenizer::from_folder(tiny.path())?;
    let task = Task::sums();
    let mut model = PeftModel::new(load_model(tiny.path(), DType::F32, &Device::Cpu)?);
    let mut c = TinyLoraConfig::new(TargetSpec::new(ModuleNames::all_linear())).with_u(u).with_weight_tying(1.0);
    c.r = r;
    c.projection_seed = 42 + seed as i64;
    model.add_adapter("default", c)?;
    let encoder = Encoder { tokenizer: Some(&tokenizer), chat: None };
    let config = GrpoConfig {
        steps,
        prompts_per_step: prompts,
        group_size: group,
        learning_rate: lr,
        seed,
        ..Default::default()
    };
    let mut t = Trainer::new(&mut model, &task, encoder, config)?;
    let greedy = AccuracyOptions::default();
    let sampled = AccuracyOptions { temperature: 1.0, samples: 4, ..greedy };
    let show = |t: &mut Trainer<'_, _>| -> anyhow::Result<()> {
        println!("greedy {:.3} sampled {:.3}", t.evaluate(&greedy)?.strict(), t.evaluate(&sampled)?.strict());
        Ok(())
    };
    show(&mut t)?;
    let s = std::time::Instant::now();
    while !t.is_finished() {
        let m = t.step()?;
        if m.step % (steps / 5).max(1) == 0 || m.step == 1 {
            println!(
                "{} reward {:.3} ent {:.3} gap {:.1e} gn {:.3} zero {:.2} {:.3}s ({:.3}) tok {:.2}",
                m.step,
                m.reward,
                m.entropy,
                m.rollout_gap,
                m.grad_norm,
                m.zero_advantage,
                m.seconds,
                m.rollout_seconds,
                m.completion_tokens
            );
        }
    }
    println!("{:?}", s.elapsed());
    show(&mut t)
}
