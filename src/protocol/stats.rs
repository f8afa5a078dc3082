//! Intervals and tests for proportions.

/// Two-sided 95 % quantile of the standard normal law.
const Z95: f64 = 1.959_963_984_540_054;

/// Wilson's score interval at 95 % (Wilson 1927) for `successes` of `n`; fractional successes are allowed.
/// `[0, 1]` when n = 0.
pub fn wilson95(successes: f64, n: f64) -> [f64; 2] {
    if n <= 0.0 {
        return [0.0, 1.0];
    }
    let (p, z2) = (successes / n, Z95 * Z95);
    let centre = p + z2 / (2.0 * n);
    let half = Z95 * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    // At p = 0 and p = 1 the bound is exact; rounding must not push it past.
    let low = if successes <= 0.0 { 0.0 } else { (centre - half) / scale };
    let high = if successes >= n { 1.0 } else { (centre + half) / scale };
    [low.clamp(0.0, 1.0), high.clamp(0.0, 1.0)]
}

/// Mean and sample standard deviation; the deviation is `None` for fewer than two values.
pub fn mean_sd(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let sd = (values.len() > 1).then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
    (mean, sd)
}

/// Exact two-sided McNemar test (McNemar 1947, binomial form): the probability, were both models equally good, of a
/// split of the images on which they differ at least as uneven as `only_a` against `only_b`.
pub fn mcnemar(only_a: u64, only_b: u64) -> f64 {
    let n = only_a + only_b;
    let ln_half_n = n as f64 * 0.5f64.ln();
    // ln C(n, k) is built up term by term, so that n in the millions neither overflows nor underflows early.
    let mut ln_choose = 0.0;
    let mut tail = 0.0;
    for k in 0..=only_a.min(only_b) {
        if k > 0 {
            ln_choose += ((n - k + 1) as f64).ln() - (k as f64).ln();
        }
        tail += (ln_choose + ln_half_n).exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() < tolerance, "{a} is not {b}");
    }

    #[test]
    fn wilson_matches_published_values() {
        // Newcombe (1998), Table I, method 3.
        for (r, n, low, high) in [
            (81.0, 263.0, 0.2553, 0.3662),
            (15.0, 148.0, 0.0624, 0.1605),
            (0.0, 20.0, 0.0, 0.1611),
            (1.0, 29.0, 0.0061, 0.1718),
        ] {
            let [l, h] = wilson95(r, n);
            close(l, low, 5e-5);
            close(h, high, 5e-5);
        }
    }

    #[test]
    fn mcnemar_is_the_binomial_tail() {
        assert_eq!(mcnemar(0, 0), 1.0);
        close(mcnemar(1, 9), 2.0 * (1.0 + 10.0) / 1024.0, 1e-12);
        close(mcnemar(9, 1), mcnemar(1, 9), 1e-15);
        assert_eq!(mcnemar(7, 7), 1.0);
        assert!(mcnemar(1_000_000, 990_000) < 1e-10);
    }
}
