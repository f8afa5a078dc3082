//! Poisson counts for byte-valued means, by inversion of a tabulated distribution.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

/// The distributions Poisson(rate·v/255) of all 256 bytes v, to 32 bits.
pub struct PoissonTable {
    laws: Vec<Law>,
}

/// One distribution. `cumulative[k]` = 2³²·P(X ≤ first + k); `guide[w >> 24]` = how many entries the words w certainly pass.
struct Law {
    first: u32,
    cumulative: Vec<u32>,
    guide: [u16; 256],
}

impl PoissonTable {
    /// The table of a rate, built once per process.
    pub fn shared(rate: f64) -> Arc<Self> {
        static TABLES: LazyLock<Mutex<HashMap<u64, Arc<PoissonTable>>>> = LazyLock::new(Mutex::default);
        let mut tables = TABLES.lock().expect("no panic while building a table");
        tables.entry(rate.to_bits()).or_insert_with(|| Arc::new(Self::new(rate))).clone()
    }

    fn new(rate: f64) -> Self {
        Self { laws: (0..256).map(|v| Law::new(rate * f64::from(v) / 255.0)).collect() }
    }

    /// The count that the word inverts to, at byte `value`.
    #[inline]
    pub fn count(&self, value: u8, word: u32) -> u32 {
        let law = &self.laws[usize::from(value)];
        let mut k = usize::from(law.guide[(word >> 24) as usize]);
        while law.cumulative[k] < word {
            k += 1;
        }
        law.first + k as u32
    }
}

impl Law {
    fn new(mean: f64) -> Self {
        // Twelve standard deviations and a little more: the mass outside is below 2⁻³².
        let spread = 12.0 * mean.sqrt() + 20.0;
        let first = (mean - spread).max(0.0).floor();
        let last = (mean + spread).ceil();
        let mut log_mass = -mean;
        let mut below = 0.0;
        let mut cumulative = Vec::new();
        for k in 0..=last as u32 {
            if k > 0 {
                log_mass += mean.ln() - f64::from(k).ln();
            }
            below += log_mass.exp();
            if f64::from(k) >= first {
                cumulative.push((below * 4294967296.0).clamp(0.0, 4294967295.0) as u32);
            }
        }
        // The rounding of the last entry must not leave a word without a count.
        let end = cumulative.iter().position(|&c| c >= 4294967290).unwrap_or(cumulative.len() - 1);
        cumulative.truncate(end + 1);
        cumulative[end] = u32::MAX;
        let guide = std::array::from_fn(|cell| {
            cumulative.iter().position(|&c| c >= (cell as u32) << 24).expect("the last entry is the largest word")
                as u16
        });
        Self { first: first as u32, cumulative, guide }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_laws_have_the_mean_and_variance_of_poisson() {
        for rate in [3.0, 60.0, 500.0] {
            let table = PoissonTable::shared(rate);
            for value in [0u8, 1, 64, 255] {
                let n = 1 << 16;
                let counts: Vec<f64> = (0..n).map(|i| f64::from(table.count(value, (i << 16) + (1 << 15)))).collect();
                let mean = counts.iter().sum::<f64>() / f64::from(n);
                let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / f64::from(n);
                let expected = rate * f64::from(value) / 255.0;
                assert!((mean - expected).abs() < 1e-3 * (1.0 + expected), "{rate} {value}: {mean}");
                assert!((variance - expected).abs() < 5e-3 * (1.0 + expected), "{rate} {value}: {variance}");
            }
        }
    }
}
