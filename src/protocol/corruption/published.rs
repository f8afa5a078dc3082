//! Published figures that corruption errors are put in relation to.

use super::Corruption;

/// AlexNet's error on the clean ImageNet validation images.
pub const ALEXNET_CLEAN: f64 = 0.435;

/// AlexNet's error on the published (saved, 224-pixel) ImageNet-C files, mean over the five severities (Hendrycks & Dietterich
/// 2019); `None` for the extra corruptions, which are in no mean of the benchmark.
pub fn alexnet(corruption: Corruption) -> Option<f64> {
    Some(match corruption {
        Corruption::GaussianNoise => 0.886428,
        Corruption::ShotNoise => 0.894468,
        Corruption::ImpulseNoise => 0.922640,
        Corruption::DefocusBlur => 0.819880,
        Corruption::GlassBlur => 0.826268,
        Corruption::MotionBlur => 0.785948,
        Corruption::ZoomBlur => 0.798360,
        Corruption::Snow => 0.866816,
        Corruption::Frost => 0.826572,
        Corruption::Fog => 0.819324,
        Corruption::Brightness => 0.564592,
        Corruption::Contrast => 0.853204,
        Corruption::ElasticTransform => 0.646056,
        Corruption::Pixelate => 0.717840,
        Corruption::JpegCompression => 0.606500,
        Corruption::SpeckleNoise | Corruption::GaussianBlur | Corruption::Spatter | Corruption::Saturate => {
            return None;
        }
    })
}
