//! The order of modules in PyTorch's `named_modules()`, told from their paths alone.

use std::cmp::Ordering;

/// Modules in the order in which transformers registers them, wherever two of them share a parent.
const ORDER: &[&str] = &[
    // The ends of a model, and what lies between.
    "model",
    "transformer",
    "gpt_neox",
    "embed_tokens",
    "embed_in",
    "wte",
    "wpe",
    "word_embeddings",
    "layers",
    "h",
    "norm",
    "ln_f",
    // Blocks.
    "ln_1",
    "self_attn",
    "self_attention",
    "attn",
    "attention",
    "ln_2",
    "mlp",
    // Attention.
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "query_key_value",
    "c_attn",
    "dense",
    // Feed-forward.
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "fc1",
    "fc2",
    // Heads.
    "lm_head",
    "embed_out",
    "score",
];

/// Encoder-decoder models and OPT register the key first.
const KEY_FIRST: &[&str] = &["k_proj", "v_proj", "q_proj", "out_proj"];

/// Sorts module paths into visit order; returns whether that order is known for all of them.
pub(super) fn sort(paths: &mut [String]) -> bool {
    let key_first = paths.iter().any(|p| p.contains("decoder.layers.") || p.contains("encoder.layers."));
    let rank = |name: &str| {
        let special = KEY_FIRST.iter().position(|n| key_first && *n == name);
        special.or_else(|| ORDER.iter().position(|n| *n == name).map(|i| KEY_FIRST.len() + i))
    };
    let mut known = true;
    paths.sort_by(|a, b| {
        let differing = a.split('.').zip(b.split('.')).find(|(left, right)| left != right);
        let Some((left, right)) = differing else { return a.len().cmp(&b.len()) };
        match (left.parse::<usize>(), right.parse::<usize>()) {
            (Ok(left), Ok(right)) => left.cmp(&right),
            // Numbers before names, so that this is an order whatever the paths are.
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            _ => {
                let (left_rank, right_rank) = (rank(left), rank(right));
                known &= left_rank.is_some() && right_rank.is_some();
                // Unknown names come last, by name: some order that is the same everywhere.
                let key = |rank: Option<usize>| rank.unwrap_or(usize::MAX);
                key(left_rank).cmp(&key(right_rank)).then_with(|| left.cmp(right))
            }
        }
    });
    known
}

#[cfg(test)]
mod tests {
    use super::sort;

    fn sorted(paths: &[&str]) -> (Vec<String>, bool) {
        let mut paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        paths.sort();
        let known = sort(&mut paths);
        (paths, known)
    }

    #[test]
    fn llama_order_is_that_of_registration() {
        let want = [
            "model.embed_tokens",
            "model.layers.2.self_attn.q_proj",
            "model.layers.2.self_attn.k_proj",
            "model.layers.2.self_attn.o_proj",
            "model.layers.2.mlp.gate_proj",
            "model.layers.2.mlp.down_proj",
            "model.layers.10.self_attn.v_proj",
            "lm_head",
        ];
        assert_eq!(sorted(&want), (want.iter().map(|p| (*p).to_owned()).collect(), true));
    }

    #[test]
    fn opt_registers_the_key_first() {
        let want = ["model.decoder.layers.0.self_attn.v_proj", "model.decoder.layers.0.self_attn.q_proj"];
        assert_eq!(sorted(&want), (want.iter().map(|p| (*p).to_owned()).collect(), true));
    }

    #[test]
    fn unknown_siblings_are_reported() {
        assert!(!sorted(&["model.layers.0.mixer.alpha", "model.layers.0.mixer.beta"]).1);
    }
}
