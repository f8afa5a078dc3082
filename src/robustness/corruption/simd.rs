//! One portable loop, compiled for wider vectors too.
//!
//! Rust neither reorders nor contracts floating-point operations, so every version of a function gives the same bytes.

/// The widest vectors that the processor has and that functions are compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) enum Width {
    Baseline,
    Avx2,
    Avx512,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn width() -> Width {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        Width::Baseline
    } else if is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Width::Avx512
    } else {
        Width::Avx2
    }
}

/// Declares functions whose body is compiled for the baseline, for AVX2 and for AVX-512, and picked at run time.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block)+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($arg: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $kind),*) $(-> $result)? {
                    portable($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $kind),*) $(-> $result)? {
                    portable($($arg),*)
                }
                match $crate::robustness::corruption::simd::width() {
                    // SAFETY: the processor has the features that the function was compiled for.
                    $crate::robustness::corruption::simd::Width::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::robustness::corruption::simd::Width::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::robustness::corruption::simd::Width::Baseline => {}
                }
            }
            portable($($arg),*)
        }
    )+};
}
pub(super) use vectorised;

/// trunc(255·clip(x)): how the reference turns [0,1] into bytes. NaN gives 0.
#[inline(always)]
pub(super) fn byte_of_unit(x: f64) -> u8 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 1.0 { x } else { 1.0 };
    truncate(x * 255.0)
}

/// [`byte_of_unit`] in single precision.
#[inline(always)]
pub(super) fn byte_of_unit_f32(x: f32) -> u8 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 1.0 { x } else { 1.0 };
    // SAFETY: 0 ≤ 255·x ≤ 255, and the comparisons have replaced NaN by 0.
    (unsafe { (x * 255.0).to_int_unchecked::<i32>() }) as u8
}

/// trunc(x) as a byte, x clamped to 0..=255. NaN gives 0.
#[inline(always)]
pub(super) fn truncate(x: f64) -> u8 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 255.0 { x } else { 255.0 };
    // SAFETY: 0 ≤ x ≤ 255, and the comparisons have replaced NaN by 0.
    (unsafe { x.to_int_unchecked::<i32>() }) as u8
}
