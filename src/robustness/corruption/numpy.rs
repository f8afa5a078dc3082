//! NumPy's legacy generator (`np.random.seed`, `RandomState`), draw for draw.

use super::random::Random;

/// MT19937 with NumPy's legacy distributions: the same seed gives the same fields as `np.random`.
pub struct NumpyCompat {
    state: [u32; 624],
    position: usize,
    /// The polar method makes normals in pairs; the second waits here.
    spare: Option<f64>,
}

impl NumpyCompat {
    /// `np.random.seed(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, position: 624, spare: None }
    }

    fn word(&mut self) -> u32 {
        if self.position == 624 {
            self.twist();
        }
        let mut y = self.state[self.position];
        self.position += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..624 {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
        }
        self.position = 0;
    }

    /// 53 bits in [0,1).
    fn double(&mut self) -> f64 {
        let high = f64::from(self.word() >> 5);
        let low = f64::from(self.word() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let x1 = 2.0 * self.double() - 1.0;
            let x2 = 2.0 * self.double() - 1.0;
            let r2 = x1 * x1 + x2 * x2;
            if r2 < 1.0 && r2 != 0.0 {
                let f = (-2.0 * r2.ln() / r2).sqrt();
                self.spare = Some(f * x1);
                return f * x2;
            }
        }
    }

    fn poisson(&mut self, mean: f64) -> u32 {
        if mean >= 10.0 {
            self.poisson_ptrs(mean)
        } else if mean == 0.0 {
            0
        } else {
            let limit = (-mean).exp();
            let mut product = 1.0;
            let mut count = 0;
            loop {
                product *= self.double();
                if product <= limit {
                    return count;
                }
                count += 1;
            }
        }
    }

    /// Transformed rejection with squeeze (Hörmann 1993).
    fn poisson_ptrs(&mut self, mean: f64) -> u32 {
        let log_mean = mean.ln();
        let b = 0.931 + 2.53 * mean.sqrt();
        let a = -0.059 + 0.02483 * b;
        let inverse_alpha = 1.1239 + 1.1328 / (b - 3.4);
        let v_r = 0.9277 - 3.6224 / (b - 2.0);
        loop {
            let u = self.double() - 0.5;
            let v = self.double();
            let us = 0.5 - u.abs();
            let k = ((2.0 * a / us + b) * u + mean + 0.43).floor();
            if us >= 0.07 && v <= v_r {
                return k as u32;
            }
            if k < 0.0 || (us < 0.013 && v > us) {
                continue;
            }
            if v.ln() + inverse_alpha.ln() - (a / (us * us) + b).ln() <= -mean + k * log_mean - log_gamma(k + 1.0) {
                return k as u32;
            }
        }
    }
}

/// ln Γ(x) by the asymptotic series that NumPy uses, x ≥ 1 an integer.
fn log_gamma(x: f64) -> f64 {
    const SERIES: [f64; 10] = [
        8.333333333333333e-02,
        -2.777777777777778e-03,
        7.936507936507937e-04,
        -5.952380952380952e-04,
        8.417508417508418e-04,
        -1.917526917526918e-03,
        6.41025641025641e-03,
        -2.955065359477124e-02,
        1.796443723688307e-01,
        -1.39243221690590e+00,
    ];
    if x == 1.0 || x == 2.0 {
        return 0.0;
    }
    let steps = if x < 7.0 { (7.0 - x) as u32 } else { 0 };
    let mut x0 = x + f64::from(steps);
    let x2 = (1.0 / x0) * (1.0 / x0);
    let series = SERIES.iter().rev().skip(1).fold(SERIES[9], |sum, c| sum * x2 + c);
    let mut result = series / x0 + 0.5 * 1.8378770664093453 + (x0 - 0.5) * x0.ln() - x0;
    for _ in 0..steps {
        result -= (x0 - 1.0).ln();
        x0 -= 1.0;
    }
    result
}

impl Random for NumpyCompat {
    fn uniforms(&mut self, low: f64, high: f64, out: &mut [f64]) {
        out.fill_with(|| low + (high - low) * self.double());
    }

    fn normals(&mut self, out: &mut [f64]) {
        out.fill_with(|| self.normal());
    }

    fn poissons(&mut self, rate: f64, values: &[u8], out: &mut [u32]) {
        for (count, &value) in out.iter_mut().zip(values) {
            *count = self.poisson(f64::from(value) / 255.0 * rate);
        }
    }

    fn coins(&mut self, p: f64, out: &mut [bool]) {
        out.fill_with(|| self.double() < p);
    }

    fn integers(&mut self, low: i32, high: i32, out: &mut [i32]) {
        let last = (high - low - 1) as u32;
        if last == 0 {
            return out.fill(low);
        }
        let mask = u32::MAX >> last.leading_zeros();
        out.fill_with(|| {
            loop {
                let draw = self.word() & mask;
                if draw <= last {
                    return low + draw as i32;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle: NumPy 1.26.4 itself, `np.random.seed(42)`.
    #[test]
    fn draws_are_numpys() {
        let mut random = NumpyCompat::new(42);
        let mut normals = [0.0; 3];
        random.normals(&mut normals);
        assert_eq!(normals, [0.4967141530112327, -0.13826430117118466, 0.6476885381006925]);
        let mut random = NumpyCompat::new(42);
        assert_eq!(random.uniform(0.0, 1.0), 0.3745401188473625);
        let mut random = NumpyCompat::new(42);
        let mut integers = [0; 6];
        random.integers(-3, 3, &mut integers);
        assert_eq!(integers, [0, 1, -1, 1, 1, -2]);
        let mut counts = [0; 6];
        NumpyCompat::new(42).poissons(255.0, &[3, 30, 0, 100, 8, 200], &mut counts);
        assert_eq!(counts, [4, 23, 0, 113, 6, 192]);
    }

    #[test]
    fn log_gamma_is_the_logarithm_of_the_factorial() {
        let mut expected = 0.0;
        for k in 1..200u32 {
            expected += f64::from(k).ln();
            assert!((log_gamma(f64::from(k) + 1.0) - expected).abs() < 1e-9 * (1.0 + expected));
        }
    }
}
