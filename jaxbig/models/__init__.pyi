"""Models, as `jaxbig.models.Decoder`."""

from .alexnet import AlexNet as AlexNet
from .base import Classifier as Classifier
from .base import Model as Model
from .base import Translator as Translator
from .convnet import Conv as Conv
from .convnet import ConvNet as ConvNet
from .convnet import Dense as Dense
from .convnet import Dropout as Dropout
from .convnet import Pool as Pool
from .convnext import ConvNeXt as ConvNeXt
from .deltanet import DeltaNet as DeltaNet
from .griffin import Griffin as Griffin
from .language_model import Decoder as Decoder
from .language_model import Encoder as Encoder
from .language_model import EncoderDecoder as EncoderDecoder
from .layers.rotary_scaling import LinearScaling as LinearScaling
from .layers.rotary_scaling import Llama3Scaling as Llama3Scaling
from .layers.rotary_scaling import RotaryScaling as RotaryScaling
from .mlp import MLP as MLP
from .resnet import ResNet as ResNet
from .rnn import RNN as RNN
from .rnn import RNNLanguageModel as RNNLanguageModel
from .rnn_seq2seq import Additive as Additive
from .rnn_seq2seq import Multiplicative as Multiplicative
from .rnn_seq2seq import RNNEncoderDecoder as RNNEncoderDecoder
from .vit import ViT as ViT
