"""Linear models, nearest neighbours and support vector machines in JAX, behind scikit-learn's interface."""

from .coordinate_descent import ElasticNet, ElasticNetCV, Lasso, LassoCV, enet_path, lasso_path
from .linear import LinearRegression, Ridge, RidgeCV
from .logistic import LogisticRegression, LogisticRegressionCV, solve_logistic_regression
from .neighbors import KNeighborsClassifier, KNeighborsRegressor
from .svm import SVC, SVR
